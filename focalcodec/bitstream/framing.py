"""Packets in a byte stream, TCP or a pipe, found again behind whatever is not a packet.

A packet is where its magic is, a size that its fields name, and the checksum. What is none is
passed over byte by byte, so every whole packet is found, whatever stands around it, and as soon as
its last byte is there, whatever sizes damaged bytes before it claim.
"""

from focalcodec.bitstream.errors import PacketError
from focalcodec.bitstream.packets import HEAD_BYTES, MAGIC, packet_from_bytes, packet_size


class PacketFinder:
    """Cuts a byte stream into packets.

    Between calls it keeps at most the beginning of one packet, less than 1037 bytes.

    Attributes
    ----------
    skipped : bytes so far that belong to no packet.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._rest = bytearray()

    def push(self, content: bytes) -> list[bytes]:
        """Whole packets, in order, that end in the next bytes of the stream, any number of them."""
        self._rest += content
        packets, is_packet = [], True
        while is_packet:
            start, end, is_packet = self._search()
            self.skipped += start
            if is_packet:
                packets.append(bytes(self._rest[start:end]))
            del self._rest[:end]
        return packets

    def finish(self) -> None:
        """Count the beginning of a packet that never came to its end."""
        self.skipped += len(self._rest)
        self._rest.clear()

    def _search(self) -> tuple[int, int, bool]:
        """Bytes to skip, bytes to drop, and whether a packet lies between the two."""
        rest = self._rest
        keep = len(rest) - rest.endswith(MAGIC[:1])
        start = rest.find(MAGIC)
        while start >= 0:
            head = rest[start : start + HEAD_BYTES]
            size = HEAD_BYTES if len(head) < HEAD_BYTES else packet_size(head)
            if size and start + size > len(rest):
                keep = min(keep, start)
            elif size and _is_sound(bytes(rest[start : start + size])):
                return start, start + size, True
            start = rest.find(MAGIC, start + 1)
        return keep, keep, False


def _is_sound(content: bytes) -> bool:
    try:
        packet_from_bytes(content)
    except PacketError:
        return False
    return True
