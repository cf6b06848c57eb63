"""Docstrings and comments keep to the glossary of the manual, and a docstring starts with a noun phrase or a verb."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest
from support.glossary import problems
from support.paths import ROOT

FILES = [
    path
    for top in ("clipa_eqx", "conversion", "scripts", "configs", "benchmarks", "tests")
    for path in sorted((ROOT / top).rglob("*.py"))
    # These two hold the banned words as data.
    if path.name not in ("test_prose.py", "glossary.py")
]
FIRST_WORDS = re.compile(r"(Of|What|Where|Who|How|When|Which|That|As|If|But)\b")


def docstrings(source: str) -> list[tuple[int, str]]:
    """Line and text of every docstring."""
    nodes = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    found = [(node.body[0].lineno, ast.get_docstring(node, clean=False)) for node in nodes if node.body]
    return [(line, text) for line, text in found if text]


def comments(source: str) -> list[tuple[int, str]]:
    """Line and text of every comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


def words(source: str) -> list[str]:
    """Docstrings and comments of a file, each on its own lines and everything else blank."""
    lines = [""] * (source.count("\n") + 1)
    for first, text in (*docstrings(source), *comments(source)):
        for number, line in enumerate(text.splitlines(), first - 1):
            # Doctests are code.
            lines[number] = "" if line.lstrip().startswith(">>>") else f"{lines[number]} {line.strip()}"
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_keeps_to_the_glossary(path: Path):
    found = problems(path.relative_to(ROOT).as_posix(), words(path.read_text(encoding="utf-8")))
    assert found == [], "\n" + "\n".join(found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_start_with_a_noun_phrase_or_a_verb(path: Path):
    started = [(line, text.split("\n")[0]) for line, text in docstrings(path.read_text(encoding="utf-8"))]
    assert [one for one in started if FIRST_WORDS.match(one[1])] == []


def test_words_of_docstrings_and_comments_are_checked_and_those_of_code_are_not():
    source = (
        '"""A picture."""\n\npictures = "picture"  # by mending\n\n\ndef f():\n    """Fine.\n\n    Told so.\n    """\n'
    )
    assert [one.split("; ")[0] for one in problems("a.py", words(source))] == [
        "a.py:1: 'picture'",
        "a.py:3: 'mending'",
        "a.py:9: 'Told'",
    ]
    assert FIRST_WORDS.match("Of towers.")
    assert not FIRST_WORDS.match("Offsets of towers.")
