"""What is wrong with a file, a header or a payload."""


class FocalFileError(ValueError):
    """A file that is no sound `.focal` file, or does not fit what it is used for."""


class MagicError(FocalFileError):
    """The file does not begin as a `.focal` file does."""


class VersionError(FocalFileError):
    """The file has a version of the format that is not known here."""


class HeaderError(FocalFileError):
    """The header is cut or damaged, or a field has an impossible value."""


class ChecksumError(FocalFileError):
    """The payload does not have the checksum that the header names."""


class LengthError(FocalFileError):
    """The number of tokens or bytes does not fit the header."""


class ModelError(FocalFileError):
    """The tokens were made with another codec."""


class CutFileWarning(UserWarning):
    """Only the first tokens are there: the file is not finished, or cut."""


class PacketError(ValueError):
    """Bytes that are no sound packet."""
