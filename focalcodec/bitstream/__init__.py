"""Tokens as bits: the `.focal` file, and packets for live speech.

``packing`` turns tokens into bits and back; ``header`` holds what is said of them. ``files`` is the
format of the file, with its writer and its reader. ``packets`` is the format of packets, with the
sender's half; ``framing`` finds packets in a byte stream; ``receiver`` follows a stream of them,
which ``sequencer`` puts in order and ``concealment`` completes, and ``counts`` what happened.
``fields`` and ``errors`` are what all share.
"""

from focalcodec.bitstream.concealment import Concealment, fill_with, repeat_last, zeros
from focalcodec.bitstream.counts import Counts
from focalcodec.bitstream.errors import (
    ChecksumError,
    CutFileWarning,
    FocalFileError,
    HeaderError,
    LengthError,
    MagicError,
    ModelError,
    PacketError,
    VersionError,
)
from focalcodec.bitstream.files import FilePath, Reader, Writer, open_focal, read, write
from focalcodec.bitstream.framing import PacketFinder
from focalcodec.bitstream.header import Header, check_model
from focalcodec.bitstream.packets import Packet, Packetizer, packet_from_bytes, packet_to_bytes
from focalcodec.bitstream.packing import pack, unpack
from focalcodec.bitstream.receiver import Receiver
from focalcodec.bitstream.sequencer import Chunk

__all__ = [
    "ChecksumError",
    "Chunk",
    "Concealment",
    "Counts",
    "CutFileWarning",
    "FilePath",
    "FocalFileError",
    "Header",
    "HeaderError",
    "LengthError",
    "MagicError",
    "ModelError",
    "Packet",
    "PacketError",
    "PacketFinder",
    "Packetizer",
    "Reader",
    "Receiver",
    "VersionError",
    "Writer",
    "check_model",
    "fill_with",
    "open_focal",
    "pack",
    "packet_from_bytes",
    "packet_to_bytes",
    "read",
    "repeat_last",
    "unpack",
    "write",
    "zeros",
]
