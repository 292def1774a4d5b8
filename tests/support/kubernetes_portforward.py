"""The server's side of a port-forward: a WebSocket whose frames carry a channel number and bytes."""

import base64
import contextlib
import hashlib
import socket
import struct
import threading
from typing import Any, BinaryIO

PROTOCOL = "v4.channel.k8s.io"
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_BINARY, _CLOSE = 2, 8


def forward(handler: Any, port: int, target: tuple[str, int], opened: list[socket.socket]) -> None:
    """Answer an upgrade request and copy between it and ``target`` until either side ends.

    ``opened`` learns the connection to the client, for tests that break it.
    """
    key = handler.headers["Sec-WebSocket-Key"].encode()
    accept = base64.b64encode(hashlib.sha1(key + _MAGIC).digest()).decode()
    handler.send_response(101)
    for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)):
        handler.send_header(name, value)
    handler.send_header("Sec-WebSocket-Protocol", PROTOCOL)
    handler.end_headers()
    handler.close_connection = True
    client: socket.socket = handler.connection
    opened.append(client)
    # Each channel begins with the port that it is for: 0 carries data, 1 errors.
    for channel in (0, 1):
        _send(client, bytes([channel]) + struct.pack("<H", port))
    with socket.create_connection(target) as service:
        threading.Thread(target=_to_client, args=(service, client), daemon=True).start()
        with contextlib.suppress(OSError, EOFError):
            while (data := _receive(handler.rfile)) is not None:
                assert data[0] == 0
                service.sendall(data[1:])
        with contextlib.suppress(OSError):
            service.shutdown(socket.SHUT_RDWR)


def _to_client(service: socket.socket, client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := service.recv(65536):
            _send(client, b"\0" + data)
        client.shutdown(socket.SHUT_RDWR)


def _send(client: socket.socket, data: bytes) -> None:
    """One unmasked binary frame."""
    size = len(data)
    if size < 126:
        head = struct.pack("!BB", 0x80 | _BINARY, size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x80 | _BINARY, 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | _BINARY, 127, size)
    client.sendall(head + data)


def _receive(stream: BinaryIO) -> bytes | None:
    """Content of the next masked frame; None when the client closes."""
    first, second = _exactly(stream, 2)
    size = second & 0x7F
    if size == 126:
        (size,) = struct.unpack("!H", _exactly(stream, 2))
    elif size == 127:
        (size,) = struct.unpack("!Q", _exactly(stream, 8))
    mask = _exactly(stream, 4)
    data = _exactly(stream, size)
    if first & 0x0F == _CLOSE:
        return None
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
