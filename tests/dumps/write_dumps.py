"""Dumps as the real tools write them: ``python tests/dumps/write_dumps.py [TOOL ...] [--out FOLDER]``.

Each script in ``tools/`` names the packages that it needs in its first lines (inline script metadata). It runs in a
temporary environment that has these alone, with three arguments: the folder of images, their address on loopback, and
the folder to write. It writes its dumps, and ``read.json``: what the tool itself reads back from each of them.
The default tests read the copies in ``written/``; a slow test runs these scripts again.
"""

import argparse
import contextlib
import functools
import http.server
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
IMAGES, TOOLS, WRITTEN = HERE / "images", HERE / "tools", HERE / "written"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a folder, served on loopback."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def tools() -> list[str]:
    """Names of the tools that have a script."""
    return sorted(path.stem for path in TOOLS.glob("*.py"))


def packages(script: Path) -> list[str]:
    """The exact versions that a script asks for."""
    lines = script.read_text().partition("# /// script\n")[2].partition("# ///")[0].splitlines()
    return tomllib.loads("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines))["dependencies"]


def write_dumps(tool: str, out: Path) -> None:
    """Install a tool in a temporary environment and let it write its dumps to ``out``, which must not exist."""
    script = TOOLS / f"{tool}.py"
    with tempfile.TemporaryDirectory() as folder, serve(IMAGES) as url:
        environment = Path(folder) / "environment"
        venv.create(environment, with_pip=True)
        python = environment / "bin/python"
        subprocess.run([python, "-m", "pip", "install", "-q", *packages(script)], check=True)
        out.mkdir(parents=True)
        # -P: a script that is named like its package must not be imported as that package.
        subprocess.run([python, "-P", script, IMAGES, url, out], check=True, cwd=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"of {', '.join(tools())} (all)")
    parser.add_argument("--out", type=Path, default=WRITTEN, help="folder for one folder per tool (written/)")
    options = parser.parse_args()
    for tool in options.tools or tools():
        out = options.out / tool
        if out.exists():
            shutil.rmtree(out)
        print(f"{tool}: {' '.join(packages(TOOLS / f'{tool}.py'))} -> {out}", file=sys.stderr)
        write_dumps(tool, out)


if __name__ == "__main__":
    main()
