"""Packets over UDP and TCP: boxes that packets are taken out of or put into.

A receiver binds or listens, a sender sends or connects. UDP takes one packet as one datagram and
neither knows nor cares whether somebody is there. Over TCP several senders may connect; what is no
packet is passed over, and a connection that breaks ends only itself.
"""

import selectors
import socket
import time
from typing import NamedTuple
from urllib.parse import urlsplit

from focalcodec.bitstream import PacketFinder
from focalcodec.cli.live.end import End

_MAX_DATAGRAM = 2048  # a packet has 1037 bytes at most
_BUFFER_BYTES = 2**20
_AT_ONCE = 64  # packets before somebody looks at the clock again
_MAX_CONNECTIONS = 16
_PATIENCE_S = 10.0  # for a host that does not answer, or does not take what is sent
_SCHEMES = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}


class Address(NamedTuple):
    """Where to send to or receive from; ``scheme`` is udp or tcp, ``host`` "" all of this host."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        """Write it as it is given."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_address(word: str) -> Address | None:
    """``udp://HOST:PORT`` or ``tcp://HOST:PORT``; None for what is meant to be something else.

    Raises
    ------
    ValueError : if something is missing or too much.
    """
    if "://" not in word:
        return None
    try:
        parts = urlsplit(word)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    excess = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in _SCHEMES or port is None or excess:
        raise ValueError(f"{word} is no address; give udp://HOST:PORT or tcp://HOST:PORT")
    return Address(parts.scheme, parts.hostname or "", port)


def _resolve(address: Address) -> tuple[int, tuple]:
    """Family and socket address of the first match."""
    kind = _SCHEMES[address.scheme]
    host = address.host or None
    flags = 0 if host else socket.AI_PASSIVE
    family = socket.AF_UNSPEC if host else socket.AF_INET
    try:
        found = socket.getaddrinfo(host, address.port, family, kind, flags=flags)
    except OSError as error:
        raise OSError(f"{address}: {error.strerror or error}") from error
    return found[0][0], found[0][4]


def _named(address: Address, error: OSError) -> OSError:
    return OSError(f"{address}: {error.strerror or error}")


class UdpInbox(End):
    """Datagrams that come to an address of this host.

    Attributes
    ----------
    address : with the port that was found where 0 was asked for.

    Raises
    ------
    OSError : naming the address, if it cannot be used.
    """

    def __init__(self, address: Address) -> None:
        family, target = _resolve(address)
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            self._socket.bind(target)
        except OSError as error:
            self._socket.close()
            raise _named(address, error) from error
        self._socket.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self.address = address._replace(port=self._socket.getsockname()[1])

    def receive(self, timeout_s: float) -> list[bytes]:
        """Packets that are here, after waiting for the first one; [] if none has come."""
        packets: list[bytes] = []
        self._selector.select(max(0.0, timeout_s))
        while len(packets) < _AT_ONCE:
            try:
                packets.append(self._socket.recv(_MAX_DATAGRAM))
            except OSError:  # nothing more, or news of something that was sent
                break
        return packets

    def close(self) -> None:
        """Give the port back."""
        self._selector.close()
        self._socket.close()


class TcpInbox(End):
    """Packets of all who connect to an address of this host; otherwise as `UdpInbox`."""

    def __init__(self, address: Address) -> None:
        family, target = _resolve(address)
        try:
            self._server = socket.create_server(target[:2], family=family)
        except OSError as error:
            raise _named(address, error) from error
        self._server.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._finders: dict[socket.socket, PacketFinder] = {}
        self._skipped = 0  # bytes of connections that are over
        self.address = address._replace(port=self._server.getsockname()[1])

    def receive(self, timeout_s: float) -> list[bytes]:
        """Packets whose last byte is here, after waiting for something; [] if there is none."""
        packets: list[bytes] = []
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            if key.fileobj is self._server:
                self._accept()
            else:
                packets += self._read(key.fileobj)
        return packets

    def _accept(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError:  # it has gone already
            return
        if len(self._finders) >= _MAX_CONNECTIONS:
            connection.close()
            return
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ)
        self._finders[connection] = PacketFinder()

    def _read(self, connection: socket.socket) -> list[bytes]:
        try:
            content = connection.recv(_MAX_DATAGRAM)
        except BlockingIOError:
            return []
        except OSError:
            content = b""
        if content:
            return self._finders[connection].push(content)
        self._selector.unregister(connection)
        connection.close()
        finder = self._finders.pop(connection)
        finder.finish()
        self._skipped += finder.skipped
        return []

    def notes(self) -> str:
        """How many bytes were no packets."""
        skipped = self._skipped + sum(finder.skipped for finder in self._finders.values())
        return f"{skipped} bytes that were no packets" if skipped else ""

    def close(self) -> None:
        """End all connections and give the port back."""
        self._selector.close()
        for connection in (*self._finders, self._server):
            connection.close()


class UdpOutbox:
    """Datagrams to an address; whether somebody gets them is not known.

    Raises
    ------
    OSError : naming the address, if it cannot be reached from here.
    """

    num_ends = 5  # how often the end is said: each of them may be lost

    def __init__(self, address: Address) -> None:
        family, self._target = _resolve(address)
        self._address = address
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.settimeout(_PATIENCE_S)

    def send(self, packet: bytes) -> None:
        """Send one packet."""
        try:
            self._socket.sendto(packet, self._target)
        except OSError as error:
            raise _named(self._address, error) from error

    def pause(self) -> None:
        """Let a moment pass, so that one disturbance does not hit two packets."""
        time.sleep(0.01)

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()


class TcpOutbox:
    """A connection to an address; otherwise as `UdpOutbox`."""

    num_ends = 1

    def __init__(self, address: Address) -> None:
        _, target = _resolve(address)
        self._address = address
        try:
            self._socket = socket.create_connection(target[:2], timeout=_PATIENCE_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise _named(address, error) from error

    def send(self, packet: bytes) -> None:
        """Send one packet."""
        try:
            self._socket.sendall(packet)
        except TimeoutError as error:
            reason = f"{self._address}: takes nothing for {_PATIENCE_S:g} s"
            raise OSError(reason) from error
        except OSError as error:
            raise OSError(
                f"{self._address}: the connection broke: {error.strerror or error}"
            ) from error

    def pause(self) -> None:
        """Nothing is lost here."""

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


Inbox = UdpInbox | TcpInbox
Outbox = UdpOutbox | TcpOutbox


def open_inbox(address: Address) -> Inbox:
    """Box to take packets out of."""
    return UdpInbox(address) if address.scheme == "udp" else TcpInbox(address)


def open_outbox(address: Address) -> Outbox:
    """Box to put packets into.

    Raises
    ------
    ValueError : if the address names no host.
    """
    if not address.host or not address.port:
        raise ValueError(f"{address} names no host and port to send to")
    return UdpOutbox(address) if address.scheme == "udp" else TcpOutbox(address)
