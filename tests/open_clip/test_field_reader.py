"""The reader of open_clip's config fields: a wrong value is one problem, and reading continues with a usable one."""

import math

import pytest

from conversion.open_clip import config_fields
from conversion.open_clip.config_fields import FieldReader

HUGE = 1 << 31
# Method and arguments after the key; values that are taken, with what they give; values that are refused.
READS = {
    "flag": ((), {True: True, False: False}, [None, 0, 1, "true", [True]]),
    "count": ((7,), {1: 1, HUGE - 1: HUGE - 1}, [None, 0, -1, True, 1.0, "1", HUGE, [1]]),
    "number": ((0.5,), {1: 1.0, 1e-6: 1e-6, 999_999: 999_999.0}, [None, 0, -1, True, "1", 1e6, math.nan, math.inf]),
    "pair": ((7,), {3: (3, 3), (2, 5): (2, 5)}, [None, 0, True, 2.0, "3", [1], [1, 2, 3], [1, 0], [1, True], [1, 2.0]]),
    "triple": (((1.0, 2.0, 3.0),), {(0, -1, 2.5): (0.0, -1.0, 2.5)}, [None, 1, [1, 2], [1, 2, 3, 4], [1, 2, math.nan]]),
    "one_of": (("a", {"a": "A", "b": "B"}), {"a": "A", "b": "B"}, [None, "c", 1, ["a"], "A"]),
}
DEFAULTS = {"flag": False, "count": 7, "number": 0.5, "pair": (7, 7), "triple": (1.0, 2.0, 3.0), "one_of": "A"}
TAKEN = [(method, value) for method, (_, taken, _) in READS.items() for value in taken]
REFUSED = [(method, value) for method, (*_, refused) in READS.items() for value in refused]


def read(method, values):
    reader = FieldReader(values, "vision_cfg.")
    return getattr(reader, method)("key", *READS[method][0]), reader.problems


def from_json(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(("method", "value"), TAKEN)
def test_a_valid_value_is_taken(method, value):
    found, problems = read(method, {"key": from_json(value)})
    assert (found, problems) == (READS[method][1][value], [])
    assert type(found) is type(READS[method][1][value])


@pytest.mark.parametrize("method", READS)
def test_an_absent_field_has_its_default(method):
    assert read(method, {}) == (DEFAULTS[method], [])


@pytest.mark.parametrize(("method", "value"), REFUSED)
def test_a_wrong_value_is_one_problem_with_its_place_and_reading_continues(method, value):
    found, problems = read(method, {"key": value})
    assert len(problems) == 1
    assert problems[0].startswith(f"vision_cfg.key is {value!r}, expected ")
    assert type(found) is type(DEFAULTS[method])


def test_a_count_without_a_default_is_needed():
    reader = FieldReader({})
    assert reader.count("width", None) == 1
    assert reader.problems == ["width is None, expected a positive whole number"]


@pytest.mark.parametrize(("above", "words"), [(0.0, "three positive numbers"), (-math.inf, "three numbers")])
def test_three_numbers_may_have_to_be_positive(above, words):
    reader = FieldReader({"std": [1, 0, 2], "mean": [1, 2]})
    assert reader.triple("std", (9.0, 9.0, 9.0), above=above) == ((9.0,) * 3 if above == 0 else (1.0, 0.0, 2.0))
    reader.triple("mean", (0.0,) * 3, above=above)
    assert reader.problems[-1].endswith(f"expected {words}")


def test_a_child_names_its_fields_with_their_full_place():
    reader = FieldReader({"a": {"b": {"c": 1}}}).child("a").child("b")
    reader.flag("c")
    assert reader.problems == ["a.b.c is 1, expected true or false"]


@pytest.mark.parametrize(
    ("values", "is_needed", "problems"),
    [
        ({}, True, ["p.a is missing"]),
        ({"a": None}, True, ["p.a is missing"]),
        ({}, False, []),
        ({"a": None}, False, []),
        ({"a": [1]}, True, ["p.a is [1], expected an object"]),
        ({"a": 0}, False, ["p.a is 0, expected an object"]),
    ],
)
def test_an_absent_or_wrong_child_reads_as_an_empty_object(values, is_needed, problems):
    reader = FieldReader(values, "p.")
    assert reader.child("a", is_needed=is_needed).values == {}
    assert reader.problems == problems


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("known", object, None),
        ("other", 3, "p.other (3) is an unknown field"),
        ("rate", 0.5, None),
        ("rate", 1, None),
        ("rate", True, "p.rate is True, expected float"),
        ("rate", None, None),
        ("kind", "x", None),
        ("kind", 3, "p.kind is 3, expected str"),
        ("scale", None, None),
        ("scale", False, None),
        ("scale", 0, "p.scale is 0, which is not supported"),
        ("scale", True, "p.scale is True, which is not supported"),
        ("chans", 3, None),
        ("chans", 3.0, "p.chans is 3.0, which is not supported"),
        ("chans", 4, "p.chans is 4, which is not supported"),
    ],
)
def test_other_fields_are_unused_turned_off_or_refused(field, value, words):
    reader = FieldReader({field: value}, "p.")
    reader.refuse_others(("known",), unused={"rate": float, "kind": str}, off={"scale": False, "chans": 3})
    assert reader.problems == ([] if words is None else [words])


@pytest.mark.parametrize("part", ["MODEL", "VISION", "TEXT", "PREPROCESS"])
def test_a_field_is_read_or_unused_or_turned_off_but_never_two_of_them(part):
    groups = [set(getattr(config_fields, f"{kind}_{part}", ())) for kind in ("READ", "UNUSED", "OFF")]
    assert sum(map(len, groups)) == len(set().union(*groups)) > 0
