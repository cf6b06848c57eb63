"""Provenance: one JSON form, read from all versions, with nothing lost."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.saved.provenance import Provenance, Source, Vocabulary

IMPORTED = {
    "source": {"name": "model.npz", "sha256": "ab"},
    "converter": "clipa_eqx 0.1.0",
    "format": "flax npz",
    "layout": {"prefix": "params/", "temperature": [1]},
    "profile": {"name": "flax", "why": "the format's", "image": {"norm_eps": 1e-6, "gelu": "tanh"}},
    "config_notes": ["a note"],
    "vocabulary": {"sha256": "cd", "pieces": 3, "origin": "--vocab v", "rules": "reference"},
    "parameters": 12,
    "self_check": {"finite": True, "embeddings": {"image": {"unit_norm": [1.0]}}},
    "leaves_sha256": {"log_temperature": "ef"},
}
RUN = {"version": 1, "config": {"data": {"text_reduction": "syntax"}}, "data_sha256": "0", "vocab_sha256": "1"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
NAMES = st.sampled_from([*IMPORTED, "steps", "run", "extra", "name", "other"])


def test_an_import_of_version_0_1_0_comes_back_as_it_was():
    provenance = Provenance.from_json(IMPORTED)
    assert provenance.source == Source(name="model.npz", sha256="ab")
    assert provenance.vocabulary == Vocabulary(sha256="cd", pieces=3, origin="--vocab v", rules="reference")
    assert provenance.config_notes == ("a note",)
    assert provenance.leaves_sha256 == {"log_temperature": "ef"}
    assert provenance.extra == {}
    assert provenance.to_json() == IMPORTED


def test_a_run_of_version_0_1_0_has_its_source_as_a_text():
    provenance = Provenance.from_json({"source": "clipa_eqx training run", "steps": 4, "run": RUN})
    assert provenance.source == Source(name="clipa_eqx training run")
    assert (provenance.steps, provenance.run, provenance.text_reduction) == (4, RUN, "syntax")
    assert provenance.to_json() == {"source": {"name": "clipa_eqx training run"}, "steps": 4, "run": RUN}


@pytest.mark.parametrize("run", [{}, {"config": 3}, {"config": {"data": {"text_reduction": "shuffle"}}}])
def test_a_reduction_that_is_not_recorded_is_none(run):
    assert Provenance.from_json({"run": run}).text_reduction is None


def test_a_released_model_has_the_reduction_of_its_score_unless_it_was_trained_on():
    found = Provenance.from_json({"prompt_reduction": "syntax"})
    assert (found.text_reduction, found.to_json()) == ("syntax", {"prompt_reduction": "syntax"})
    run = {"config": {"data": {"text_reduction": "block"}}}
    assert Provenance.from_json({"prompt_reduction": "syntax", "run": run}).text_reduction == "block"
    assert Provenance.from_json({"prompt_reduction": "shuffle"}).text_reduction is None


def test_unknown_keys_are_kept_at_both_levels():
    found = {"by": "me", "vocabulary": {"rules": "bert", "casing": "lower"}, "source": {"name": "x", "size": 3}}
    provenance = Provenance.from_json(found)
    assert provenance.extra == {"by": "me"}
    assert provenance.vocabulary == Vocabulary(rules="bert", extra={"casing": "lower"})
    assert provenance.to_json() == found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", 3),
        ("format", {}),
        ("layout", "flat"),
        ("config_notes", ["a", 1]),
        ("config_notes", "a"),
        ("vocabulary", "bert"),
        ("parameters", 1.5),
        ("parameters", True),
        ("self_check", None),
        ("leaves_sha256", [1]),
        ("leaves_sha256", {"a": 1}),
        ("steps", "4"),
        ("run", []),
    ],
)
def test_values_of_another_type_are_kept_and_never_taken_for_a_field(name, value):
    provenance = Provenance.from_json({name: value})
    assert provenance == Provenance(extra={name: value})
    assert provenance.to_json() == {name: value}


@settings(deadline=None)
@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_any_object_is_read_and_what_is_written_is_read_as_equal(found):
    provenance = Provenance.from_json(found)
    written = provenance.to_json()
    assert Provenance.from_json(json.loads(json.dumps(written))) == provenance
    lost = {name: value for name, value in found.items() if written.get(name) != value}
    # Only the former form of a source changes, and what is empty is left out.
    assert all(value in ({}, []) or name in ("source", "vocabulary") for name, value in lost.items())
