"""Lists of problems in messages: complete if short, bounded if long; and the classes that callers catch."""

import pytest

from clipa_eqx import errors
from clipa_eqx.errors import ClipaError, listed


def test_an_empty_list_and_one_problem_are_counted():
    assert listed([]).startswith("0 problems")
    assert listed(["missing: a"]) == "1 problem:\n  missing: a"


def test_a_hundred_problems_are_shown_and_the_rest_is_counted():
    assert "more" not in listed(["x"] * 100)
    lines = listed([f"p{i}" for i in range(1234)]).splitlines()
    assert lines[0] == "1,234 problems:"
    assert lines[1:101] == [f"  p{i}" for i in range(100)]
    assert lines[101:] == ["  ... and 1,134 more"]


def test_a_long_problem_is_cut_after_500_characters():
    assert listed(["y" * 500]).endswith("y" * 500)
    assert listed(["y" * 501]) == "1 problem:\n  " + "y" * 500 + " ..."


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("ConfigError", ValueError),
        ("DataError", ValueError),
        ("ShardingError", ValueError),
        ("ConversionError", ValueError),
        ("CheckpointError", RuntimeError),
        ("NonFiniteError", RuntimeError),
    ],
)
def test_every_error_is_caught_by_its_builtin_and_by_the_base(name, base):
    kind = getattr(errors, name)
    assert issubclass(kind, base)
    assert issubclass(kind, ClipaError)
