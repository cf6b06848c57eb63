"""A TCP proxy on a loopback port that can drop connections: for a while, or each one after some bytes."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class DroppingProxy:
    """Forwards connections to a port. Connections that are open when a mode changes are dropped.

    Attributes:
        port: of the proxy.
        dropped: connections that were dropped so far.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.dropped = 0
        self._is_down = False
        self._every: int | None = None
        self._accepted = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def down(self) -> None:
        """Drop all connections, and each new one at once, until ``up``."""
        self._is_down = True
        for one in list(self._open):
            self._drop(one)

    def up(self) -> None:
        """Forward connections again."""
        self._is_down = False

    def drop_each(self, every: int | None) -> None:
        """Drop one connection of so many, after its first 700 bytes in either direction; None drops none."""
        self._every = every

    def close(self) -> None:
        """End the proxy and all connections."""
        self._listener.close()
        self.down()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._accepted += 1
            if self._is_down:
                self._drop(client)
                continue
            left = [700] if self._every is not None and self._accepted % self._every == 0 else None
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=(source, sink, left), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, left: list[int] | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if left is not None:
                    left[0] -= len(data)
                    if left[0] < 0:
                        break
                sink.sendall(data)
        if left is not None and left[0] < 0:
            self.dropped += 1
        for one in (source, sink):
            self._open.discard(one)
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _drop(self, one: socket.socket) -> None:
        self.dropped += 1
        self._open.discard(one)
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@contextlib.contextmanager
def dropping_proxy(target: int) -> Iterator[DroppingProxy]:
    """A proxy of the server on a port, until the block ends."""
    proxy = DroppingProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
