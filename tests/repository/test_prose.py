"""The glossary holds: README, CHANGELOG and the manual use one word for one thing, in US spelling and without idiom.

Code is not prose: code blocks, code spans, link targets and comments are left out, so names in them are not checked.
"""

import pytest
from support.glossary import GLOSSARY, problems
from support.paths import ROOT

PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_keeps_to_the_glossary(page):
    found = problems(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8").splitlines())
    assert found == [], "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("The same command goes on.", "goes on"),
        ("Run it beside the others.", "beside"),
        ("Everything but for norms; all but one.", "but for"),
        ("A set of records in a work folder", "set of records"),
        ("The Optimiser starts", "Optimiser"),
        ("the tokenisers differ", "tokenisers"),
        ("The colours of pictures", "pictures"),
        ("an artefact, a saved model", "artefact"),
        ("labelled sources", "labelled"),
    ],
)
def test_a_banned_word_is_found_with_its_place(line, word):
    found = problems("docs/page.md", ["Good.", line])
    assert any(one.startswith(f"docs/page.md:2: {word!r}; write: ") for one in found)


def test_a_phrase_is_found_over_a_line_end():
    assert problems("a.md", ["- It is in the work", "  folder."]) == [
        "a.md:1: 'work folder'; write: run folder; current directory"
    ]


def test_a_banned_word_inside_another_is_none():
    assert problems("a.md", ["It applies in the intellect of cargo on besiders, recommended and commended."]) == []


def test_code_is_no_prose_and_lines_keep_their_numbers():
    lines = ["```sh", "train.py --init.optimiser True", "```", "`ColourConfig` and [text](colour.md#picture)", "colour"]
    assert problems("a.md", lines) == ["a.md:5: 'colour'; write: color"]
    assert problems("a.md", ["``tokenise`` and", "", "    picture", "    picture", "", "picture"]) == [
        "a.md:6: 'picture'; write: image"
    ]


def test_every_row_of_the_glossary_can_fail():
    samples = (
        "goes on", "told", "lies in", "stands for", "beside", "besides", "but for", "mend", "picture", "drawing",
        "drawn from", "artefact", "work folder", "record sets", "habits", "by heart", "anew", "who wants to",
        "of before", "as it is", "optimiser", "normalise", "colour", "tokeniser", "initialise", "labelled",
        "canonicalise", "centre",
    )  # fmt: skip
    assert len(samples) == len(GLOSSARY)
    for sample, row in zip(samples, GLOSSARY, strict=True):
        assert problems("a.md", [sample], [row]), row
