"""Tokens as bits: the `.focal` file, and packets for live speech.

``packing`` turns tokens into bits and back; ``header`` holds what is said of them. ``files`` is the
format of the file, with its writer and its reader. ``fields`` and ``errors`` are what these share.
"""

from focalcodec.bitstream.errors import (
    ChecksumError,
    CutFileWarning,
    FocalFileError,
    HeaderError,
    LengthError,
    MagicError,
    ModelError,
    VersionError,
)
from focalcodec.bitstream.files import FilePath, Reader, Writer, open_focal, read, write
from focalcodec.bitstream.header import Header, check_model
from focalcodec.bitstream.packing import pack, unpack

__all__ = [
    "ChecksumError",
    "CutFileWarning",
    "FilePath",
    "FocalFileError",
    "Header",
    "HeaderError",
    "LengthError",
    "MagicError",
    "ModelError",
    "Reader",
    "VersionError",
    "Writer",
    "check_model",
    "open_focal",
    "pack",
    "read",
    "unpack",
    "write",
]
