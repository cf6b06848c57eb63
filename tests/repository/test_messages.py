"""Messages of the code: flags that can be pasted, and packages that pip can install."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from support.paths import ROOT

FILES = [path for folder in ("clipa_eqx", "conversion", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
# A flag with a value that is advice; a message that starts with a flag names the flag's own value.
ADVISED_FLAG = re.compile(r"\S.*--(?:init-from|workdir) $", re.DOTALL)


def texts(tree: ast.AST) -> list[str]:
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def unquoted(tree: ast.AST) -> list[int]:
    """Lines of messages that put a value after a flag which is to be pasted, without quoting it for a shell."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            for before, after in zip(node.values, node.values[1:], strict=False):
                if isinstance(before, ast.Constant) and ADVISED_FLAG.search(str(before.value)):
                    assert isinstance(after, ast.FormattedValue)
                    if not ast.unparse(after.value).startswith("shlex.quote("):
                        found.append(after.lineno)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_flag_in_advice_can_be_pasted(path: Path):
    assert unquoted(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_a_flag_that_cannot_be_pasted_would_be_seen():
    assert unquoted(ast.parse('f"give a new --workdir (and --init-from {where} to start)"')) == [1]
    assert unquoted(ast.parse('f"give --init-from {shlex.quote(where)}"')) == []


def test_packages_are_named_as_pip_knows_them_and_are_optional_ones_of_ours():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = {re.split(r"[\[>=<;]", one)[0] for extra in project["optional-dependencies"].values() for one in extra}
    named: set[str] = set()
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # The package is not published, so an extra of it cannot be installed by name.
        assert [text for text in texts(tree) if "clipa_eqx[" in text] == [], path
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pip_install":
                named |= {one.value for one in node.args if isinstance(one, ast.Constant)}
    assert {"wandb", "torch", "huggingface_hub", "ray", "qtawesome"} <= named <= optional
