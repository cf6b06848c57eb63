"""Real protocol servers on loopback ports: Cloud Storage and S3, each with an empty bucket called "bucket".

As a program, ``python -m support.bucket_servers gs`` (in the folder ``tests``) starts one, prints the environment
variables that point a process to it, one ``NAME=value`` per line, then an empty line, and serves until its input ends.
"""

import contextlib
import http
import http.server
import json
import logging
import re
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple


class Server(NamedTuple):
    """A running server.

    Attributes:
        scheme: "gs" or "s3".
        port: on the loopback interface.
        variables: environment variables for ``through``: the process that is to use it.
    """

    scheme: str
    port: int

    def url(self, name: str) -> str:
        """The address of a folder in its bucket."""
        return f"{self.scheme}://bucket/{name}"

    def variables(self, *, port: int | None = None, patience: float = 60.0) -> dict[str, str]:
        """Environment variables of a process that uses the server, or a proxy of it on another port."""
        return variables(self.scheme, port or self.port, patience=patience)


def variables(scheme: str, port: int, *, patience: float = 60.0) -> dict[str, str]:
    """Environment variables of a process that uses a server on a port."""
    address = f"http://127.0.0.1:{port}"
    common = {"CLIPA_EQX_BUCKET_PATIENCE": f"{patience:g}"}
    if scheme == "gs":
        return {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, **common}
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        **common,
    }


@contextlib.contextmanager
def bucket_server(scheme: str) -> Iterator[Server]:
    """A server of this process, in its own threads."""
    with _gcs() if scheme == "gs" else _s3() as port:
        yield Server(scheme, port)


@contextlib.contextmanager
def _gcs() -> Iterator[int]:
    from gcp_storage_emulator import server as emulated
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import Server as Emulator

    _add_preconditions(objects)
    _keep_bytes(emulated)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    # The emulator prints a traceback for each connection that a client closes.
    http.server.HTTPServer.handle_error = lambda *_: None
    # It answers one request at a time. More than five that wait would be dropped, and sent again after seconds.
    http.server.HTTPServer.request_queue_size = 512
    emulator = Emulator("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    emulator.start()
    try:
        yield port
    finally:
        emulator.stop()


def _keep_bytes(emulated) -> None:
    """Let the emulator, which reads uploads with a parser of mail, keep a carriage return at their end."""
    if hasattr(emulated, "read_as_mail"):
        return
    emulated.read_as_mail = emulated._read_data

    def read_data(handler, query):
        kind = handler.headers.get("Content-Type") or ""
        if not kind.startswith("multipart/related"):
            return emulated.read_as_mail(handler, query)
        body = emulated._decode_raw_data(emulated._read_raw_data(handler), handler)
        boundary = kind.partition("boundary=")[2].partition(";")[0].strip("'\"").encode()
        _, about, part = body.split(b"--" + boundary, 2)
        end = b"\r\n" if about.startswith(b"\r\n") else b"\n"
        head, _, content = part[: part.rindex(end + b"--" + boundary)].partition(2 * end)
        found = re.search(rb"content-type:\s*(\S+)", head, re.IGNORECASE)
        return {
            "meta": json.loads(about[about.index(b"{") : about.rindex(b"}") + 1]),
            "content": content,
            "content-type": found[1].decode() if found else "application/octet-stream",
        }

    emulated._read_data = read_data


_GUARD = threading.Lock()


def _add_preconditions(objects) -> None:
    """Let the emulator, which ignores it, honor ``ifGenerationMatch=0``: create an object only if there is none."""
    if hasattr(objects, "without_preconditions"):
        return
    objects.without_preconditions = {}

    def guarded(name: str) -> None:
        upload = objects.without_preconditions[name] = getattr(objects, name)

        def with_preconditions(request, response, storage):
            with _GUARD:
                if request.query.get("ifGenerationMatch") == ["0"]:
                    meta = request.data.get("meta", {}) if isinstance(request.data, dict) else {}
                    key = request.query["name"][0] if "name" in request.query else meta.get("name")
                    try:
                        storage.get_file_obj(request.params["bucket_name"], key)
                    except Exception:  # not found
                        pass
                    else:
                        response.status = http.HTTPStatus.PRECONDITION_FAILED
                        response.json({"error": {"code": 412, "message": "conditionNotMet", "errors": []}})
                        return None
                return upload(request, response, storage)

        setattr(objects, name, with_preconditions)

    guarded("_media_upload")
    guarded("_multipart_upload")


@contextlib.contextmanager
def _s3() -> Iterator[int]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    try:
        reset = urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")
        create = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
        for request in (reset, create):
            urllib.request.urlopen(request).close()
        yield port
    finally:
        server.stop()


if __name__ == "__main__":
    with bucket_server(sys.argv[1]) as started:
        print("\n".join(f"{name}={value}" for name, value in started.variables().items()), end="\n\n", flush=True)
        sys.stdin.read()
