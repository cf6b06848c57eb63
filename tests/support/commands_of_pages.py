"""Commands of a page of the docs, run as a user pastes them: in this process, or each in a process of its own."""

import os
import re
import shlex
import subprocess
import sys
from functools import partial

from clipa_eqx.cli import run
from clipa_eqx.programs import evaluate
from conversion.flax_clipa import __main__ as flax_clipa
from conversion.records import __main__ as records
from conversion.verify import __main__ as verify
from support.paths import ROOT

PROGRAMS = {
    "python scripts/evaluate.py": evaluate.main,
    "python -m conversion.flax_clipa": flax_clipa.main,
    "python -m conversion.records": records.main,
    "python -m conversion.verify": verify.main,
}


def commands_by_heading(page):
    """The commands in the code blocks of ``docs/PAGE``, by the heading of their section."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
        if lines := [line for block in blocks for line in block.splitlines()]:
            found[section.partition("\n")[0]] = lines
    return found


def run_command(command, *flags):
    """Run a command in the working directory, with further flags; the exit code."""
    (program,) = [name for name in PROGRAMS if command.startswith(f"{name} ")]
    words = [*shlex.split(command.removeprefix(program)), *map(str, flags)]
    return run(partial(PROGRAMS[program], words))


def run_in_process(command, *flags, folder):
    """Run a command in ``folder`` with one device, as a process that gives its memory back; its output."""
    words = [*shlex.split(command.replace("scripts/", f"{ROOT}/scripts/")), *map(str, flags)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
