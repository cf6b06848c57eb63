"""The table of docs/ingest.md, whose rows are commands that tests run."""

import re
import shlex

from support.conversions import call
from support.paths import ROOT


def commands():
    """The commands of the table, in order."""
    page = (ROOT / "docs/ingest.md").read_text(encoding="utf-8")
    table = page.partition("## What you have\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    return [command for row in rows for command in re.findall(r"`(python -m conversion\.records [^`]+)`", row)]


def run_row(command, folder, monkeypatch):
    """Run a command of the table in ``folder``, which holds what the row describes under the names of the command.

    The exit code.
    """
    assert command in commands(), f"not in the table of docs/ingest.md: {command}"
    monkeypatch.chdir(folder)
    return call(*shlex.split(command)[3:])
