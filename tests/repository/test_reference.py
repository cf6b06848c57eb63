"""Citations of docs/reference.md resolve, each fact there is cited, and each recorded file is described.

Defects need no citation: their table is complete for the parts that exist here.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pytest
from support import goldens
from support.paths import ROOT

FOLDERS = ("clipa_eqx", "conversion", "scripts", "benchmarks", "configs", "docs", "tests")
REFERENCE, GOLDEN = ROOT / "docs" / "reference.md", goldens.DEFAULT / "README.md"
SOURCES = sorted(
    path
    for pattern in ("*.py", "*.md")
    for place in (ROOT.glob(pattern), *((ROOT / folder).rglob(pattern) for folder in FOLDERS))
    for path in place
)
ID = r"[FD]\d+(?:\.\d+)?"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def defined(page: str) -> list[str]:
    """Numbers of facts, which are headings, and of defects, which are rows of a table."""
    return re.findall(rf"^(?:### (?=F)|\| (?=D))({ID})\b", page, flags=re.MULTILINE)


def cited(text: str) -> set[str]:
    """Numbers after the name of the page, also several of them, also over the end of a line of comment."""
    lists = re.findall(rf"docs/reference\.md((?:(?:,| and)?[\s#]+{ID}\b)+)", text)
    return {one for ids in lists for one in re.findall(ID, ids)}


def citations() -> dict[Path, set[str]]:
    """Numbers that each file cites; the pages of recordings and of the reference cite by numbers alone."""
    bare = (GOLDEN, REFERENCE)
    return {path: set(re.findall(rf"\b{ID}\b", read(path))) if path in bare else cited(read(path)) for path in SOURCES}


def unresolved(found: dict[Path, set[str]]) -> list[str]:
    known = set(defined(read(REFERENCE)))
    return [f"{path.name}: {one}" for path, ids in found.items() for one in sorted(ids - known)]


def rows() -> list[tuple[str, str]]:
    """Group and pattern of each file that the page of recordings names in the first column of a group's table."""
    found: list[tuple[str, str]] = []
    for group, section in re.findall(r"^## (\w+)/\n(.*?)(?=^## |\Z)", read(GOLDEN), flags=re.MULTILINE | re.DOTALL):
        for first in re.findall(r"^\| (`[^|]*) \|", section, flags=re.MULTILINE):
            found += [(group, pattern) for pattern in re.findall(r"`([^`]+)`", first)]
    return found


def recorded() -> list[PurePosixPath]:
    files = (
        path for path in goldens.DEFAULT.rglob("*") if path.is_file() and path.suffix not in (".md", ".py", ".pyc")
    )
    return [PurePosixPath(path.relative_to(goldens.DEFAULT).as_posix()) for path in files]


def without_row(files: Iterable[PurePosixPath]) -> list[str]:
    patterns = [f"{group}/{pattern}" for group, pattern in rows()]
    return [
        str(file)
        for file in files
        if not any(len(PurePosixPath(p).parts) == len(file.parts) and file.match(p) for p in patterns)
    ]


def test_every_number_is_defined_once():
    numbers = defined(read(REFERENCE))
    assert len(numbers) == len(set(numbers))
    assert {number[0] for number in numbers} == {"F", "D"}


def test_every_citation_resolves():
    assert unresolved(citations()) == []


def test_every_fact_is_cited_outside_its_page():
    used = set().union(*(ids for path, ids in citations().items() if path != REFERENCE))
    assert [one for one in defined(read(REFERENCE)) if one.startswith("F") and one not in used] == []


def test_no_line_cites_a_document_that_is_not_here():
    left = [
        f"{path.name}: {line}"
        for path in SOURCES
        for line in read(path).splitlines()
        if re.search(r"\bfacts \d+", line, flags=re.IGNORECASE)
    ]
    assert left == []


@pytest.mark.parametrize("text", [" F99.9", " F2.3, F99.9", " F2.3 and F99.9", "\n    # F99.9"])
def test_a_broken_citation_is_seen(text, tmp_path):
    page = REFERENCE.relative_to(ROOT).as_posix()
    assert unresolved({tmp_path: cited(f"names and shapes ({page}{text})")}) == [f"{tmp_path.name}: F99.9"]


def test_every_recorded_file_has_a_row_and_every_row_a_file():
    files = recorded()
    assert files
    assert without_row(files) == []
    for group, pattern in rows():
        assert list((goldens.DEFAULT / group).glob(pattern)), f"{group}/{pattern}"


def test_a_recorded_file_without_row_is_seen():
    assert without_row([PurePosixPath("optim/lwd2.npz"), PurePosixPath("optim/more/lwd.npz")]) == [
        "optim/lwd2.npz",
        "optim/more/lwd.npz",
    ]


def test_the_tests_that_the_page_of_recordings_names_exist():
    named = set(re.findall(r"`(test_golden_\w+\.py)`", read(GOLDEN)))
    assert named == {path.name for path in (ROOT / "tests").rglob("test_golden_*.py")}
