"""Commands to paste: the programs under the names by which this process could call them."""

import os
import shlex
import shutil
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_SCRIPTS = ("train", "evaluate", "show", "replay", "embed", "search")
_CONVERSIONS = {
    "records": "conversion.records",
    "flax": "conversion.flax_clipa",
    "t5x": "conversion.t5x",
    "open-clip": "conversion.open_clip",
    "released": "conversion.released",
    "verify": "conversion.verify",
    "compare": "conversion.compare",
}


def command_line(name: str, *arguments: object) -> str:
    """A command with arguments, quoted for a shell.

    An installed program names the installed commands, a program of a clone the files of the clone.

    Args:
        name: "train", "evaluate", "show", "replay", "embed", "search", "records", "flax", "t5x", "open-clip",
            "released", "verify" or "compare".
        arguments: words in order, such as paths; placeholders are words in capitals.
    """
    called = Path(sys.argv[0])
    if called.name.startswith("clipa-"):
        words = [_as_found(f"clipa-{name}", called.parent)]
    elif name in _SCRIPTS and not (_ROOT / "scripts" / f"{name}.py").is_file():
        words = [f"clipa-{name}"]
    elif name in _SCRIPTS:
        words = [_python(), _relative(_ROOT / "scripts" / f"{name}.py")]
    else:
        words = [_python(), "-m", _CONVERSIONS[name]]
    return shlex.join([*words, *map(str, arguments)])


def next_lines(*steps: tuple[str, str]) -> list[str]:
    """Lines for the end of a program: commands that may follow, each with its purpose as a comment of the shell."""
    return ["next:", *(f"  {command}  # {purpose}" for command, purpose in steps)]


def minimal_config(name: str = "minimal") -> str:
    """A file of ``configs/`` as an argument, or a placeholder for the user's own if there is no clone."""
    path = _ROOT / "configs" / f"{name}.py"
    return _relative(path) if path.is_file() else "CONFIG.py"


def _python() -> str:
    return _as_found("python", Path(sys.executable).parent, otherwise=sys.executable)


def _as_found(program: str, folder: Path, *, otherwise: str = "") -> str:
    """The bare name if the shell finds this program in this folder, else its path."""
    found = shutil.which(program)
    # Environments link to one Python, so paths are compared as they are written.
    if found is not None and os.path.abspath(Path(found).parent) == os.path.abspath(folder):
        return program
    return _relative(Path(otherwise) if otherwise else folder / program)


def _relative(path: Path) -> str:
    """The path from the current folder if it is below that, else in full."""
    full = Path(os.path.abspath(path))
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)
