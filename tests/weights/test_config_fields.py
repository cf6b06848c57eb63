"""The precedence of flag, file, named config and default for one field of a config, with notes and problems."""

import pytest

from conversion.weights.config_fields import FIELDS, Default, Row, decide
from conversion.weights.facts import Fact

CERTAIN, OTHER = Fact((3,), "axis 1 of w"), Fact((5,), "axis 1 of w")
EITHER = Fact((3, 4), "3 and 4 have the same arrays")
HINT = Fact((3,), "a square", is_hint=True)
NAMED = Default(3, "preset X")
FREE = Default(3, "preset X", is_free=True)
UNSETTLED = Default(3, "preset X", unsettled="recipes differ")

# given, fact, default -> value, notes, problems; the name is "n", the flag "--n".
DECISIONS = {
    "flag": ((4, None, None), 4, [], []),
    "flag and file agree": ((4, EITHER, None), 4, [], []),
    "flag against file": ((4, CERTAIN, None), 4, [], ["n: 4 from --n, but the file has 3 (axis 1 of w)"]),
    "flag against undecided file": (
        (7, EITHER, None),
        7,
        [],
        ["n: 7 from --n, but the file has 3 or 4 (3 and 4 have the same arrays)"],
    ),
    "flag against hint": ((4, HINT, None), 4, [], []),
    "flag against named config": ((4, None, NAMED), 4, ["n: 4 from --n, 3 in preset X"], []),
    "file": ((None, CERTAIN, None), 3, [], []),
    "file and named config agree": ((None, CERTAIN, NAMED), 3, [], []),
    "file against named config": (
        (None, OTHER, NAMED),
        5,
        [],
        ["n: 5 from the file (axis 1 of w), 3 in preset X; --n overrides it"],
    ),
    "file against default": ((None, OTHER, FREE), 5, ["n: 5 from the file (axis 1 of w), 3 in preset X"], []),
    "file where the named config is unsettled": (
        (None, OTHER, UNSETTLED),
        5,
        ["n: 5 from the file (axis 1 of w), 3 in preset X"],
        [],
    ),
    "named config": ((None, None, NAMED), 3, ["n: 3 from preset X (shapes do not determine it)"], []),
    "named config for an undecided file": (
        (None, EITHER, NAMED),
        3,
        ["n: 3 from preset X (3 and 4 have the same arrays)"],
        [],
    ),
    "named config before hint": ((None, HINT, NAMED), 3, ["n: 3 from preset X (a square)"], []),
    "named config that the file excludes": (
        (None, Fact((4, 5), "w"), NAMED),
        3,
        ["n: 3 from preset X (w)"],
        ["n: 3 from preset X, but the file has 4 or 5 (w)"],
    ),
    "hint": (
        (None, HINT, None),
        3,
        ["n: 3 from the file (a square); use --n or --config for another value"],
        [],
    ),
    "hint before default": (
        (None, HINT, FREE),
        3,
        ["n: 3 from the file (a square); use --n or --config for another value"],
        [],
    ),
    "default": ((None, None, FREE), 3, ["n: 3, the default of preset X; use --n for another value"], []),
    "nothing": ((None, None, None), None, [], ["n is not known (shapes do not determine it); give --n"]),
    "an undecided file": (
        (None, EITHER, None),
        None,
        [],
        ["n is not known (3 and 4 have the same arrays); give --n"],
    ),
    "an unsettled named config": (
        (None, EITHER, UNSETTLED),
        None,
        [],
        ["n is not known (3 and 4 have the same arrays; recipes differ); give --n"],
    ),
    "another text tower": (
        (None, CERTAIN, Default(3, "table Y", note="n: 3, 2 in preset X")),
        3,
        ["n: 3, 2 in preset X"],
        [],
    ),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_precedence_notes_and_problems(case):
    (given, fact, default), value, notes, problems = DECISIONS[case]
    found = decide(Row("n", "--n", given, fact, default))
    assert (found.value, list(found.notes), list(found.problems)) == (value, notes, problems)


def test_without_a_flag_the_messages_name_other_ways():
    assert decide(Row("n", None, None, None, None)).problems[0].endswith("; give --config or --preset")
    assert decide(Row("n", None, None, HINT, None)).notes[0].endswith("; use --config for another value")
    assert decide(Row("n", None, None, None, FREE)).notes[0].endswith("; use --config for another value")
    assert decide(Row("n", None, None, OTHER, NAMED)).problems == ("n: 5 from the file (axis 1 of w), 3 in preset X",)


@pytest.mark.parametrize(("side", "count"), [(4096, 0), (4097, 1)])
def test_the_longest_image_side_is_limited(side, count):
    assert "image.image_size" in FIELDS
    problems = decide(Row("image.image_size", "--image-size", (side, 16), None, None)).problems
    assert len(problems) == count
    assert all("the longest supported side has 4096 pixels" in problem for problem in problems)
