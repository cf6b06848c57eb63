"""Whether something that may be a Ray cluster answers at an address: Ray itself tries for two minutes, then exits."""

import os
import socket

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""The first bytes of an HTTP/2 client, on which gRPC builds: the fixed text, and a frame of settings without any."""
_SETTINGS = 4  # type of the frame that a server answers with


def no_answer(address: str, *, seconds: float = 10.0) -> str | None:
    """Why no cluster can be at an address; None if one may be.

    Args:
        address: HOST:PORT.
        seconds: the time to wait for each answer.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):  # the preface would have to be encrypted
                return None
            connection.sendall(_PREFACE)
            header = b""
            while len(header) < 4 and (more := connection.recv(9)):
                header += more
    except OSError as error:
        return str(error)
    return None if header[3:4] == bytes([_SETTINGS]) else "what answers there is no Ray cluster"
