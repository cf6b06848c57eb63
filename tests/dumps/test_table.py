"""Each row of the table of what people have is a command that a test runs on such a dump."""

import ast
from pathlib import Path

import pytest
from support.dump_table import commands

TESTED = {
    node.value
    for path in Path(__file__).parent.glob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
}


@pytest.mark.parametrize("command", commands())
def test_a_row_is_run_by_a_test(command):
    assert command in TESTED


def test_no_row_is_there_twice():
    assert len(set(commands())) == len(commands())
