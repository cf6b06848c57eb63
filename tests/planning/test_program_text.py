"""Collectives and arrays of a compiled program's text: kinds, groups, bytes, and loops counted as often as they run.

The lines of `step.hlo` are those of libtpu 0.0.42 for H/14 on v3:16x16 and of losses on v5e:2x2, shortened.
"""

from pathlib import Path

import pytest

from clipa_eqx.planning.compiled import kept_activations
from clipa_eqx.planning.program_text import Array, Collective, arrays, collectives, loops

LOOP = (Path(__file__).parent / "step.hlo").read_text(encoding="utf-8")


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    found = {(one.kind, one.arrays): one for one in collectives(LOOP, devices=512)}
    square = Array("bf16", (1, 1280, 1280))
    assert found["all-gather", (square,)] == Collective("all-gather", (square,), 8, 32)
    assert found["all-gather", (square,)].bytes == 2 * 1280 * 1280
    sums = (Array("f32", (1, 160, 1280)), Array("f32", (1, 640, 1280)))
    assert found["all-reduce", sums] == Collective("all-reduce", sums, 64, 32)


def test_a_fusion_that_is_a_reduce_scatter_counts_as_one():
    scattered = [one for one in collectives(LOOP, devices=512) if one.kind == "reduce-scatter"]
    assert Collective("reduce-scatter", (Array("f32", (1280, 1280)),), 8, 32) in scattered
    # The result of the plain operation is one of the parts.
    assert Collective("reduce-scatter", (Array("f32", (4, 16, 128)),), 4, 1) in scattered
    assert len(scattered) == 2


def test_an_asynchronous_gather_counts_once_and_by_its_result():
    embeddings = (Array("f32", (65536, 1024)),)
    assert [one for one in collectives(LOOP, devices=512) if one.arrays == embeddings] == [
        Collective("all-gather", embeddings, 4, 1)
    ]


def test_a_gather_that_runs_next_to_a_product_counts_once():
    embeddings = (Array("f32", (32768, 512)),)
    assert [one for one in collectives(LOOP, devices=512) if one.arrays == embeddings] == [
        Collective("all-gather", embeddings, 4, 1)
    ]


@pytest.mark.parametrize(
    ("kind", "shares"),
    [("all-gather", 7 / 8), ("reduce-scatter", 7 / 8), ("all-reduce", 14 / 8), ("all-to-all", 7 / 8)],
)
def test_a_ring_sends_what_its_group_needs(kind, shares):
    assert Collective(kind, (Array("f32", (16, 100)),), 8, 3).sent == pytest.approx(6400 * shares)


def test_a_permutation_sends_its_array_once():
    assert Collective("collective-permute", (Array("f32", (100,)),), 512, 1).sent == 400


def test_the_largest_traffic_is_first():
    traffic = [one.sent * one.times for one in collectives(LOOP, devices=512)]
    assert traffic == sorted(traffic, reverse=True)


def test_a_loop_whose_length_the_text_does_not_show_counts_once_and_is_marked():
    text = LOOP.replace("constant(32)", "parameter(1)")
    found = [one for one in collectives(text, devices=512) if one.kind == "all-reduce"]
    assert [(one.times, one.is_certain) for one in found] == [(1, False)]
    assert loops(text)[0].trips is None


def test_the_length_that_the_compiler_notes_comes_first():
    noted = 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    assert loops(LOOP.replace("body=%body", noted))[0].trips == 7


def test_groups_of_one_device_move_nothing():
    assert len(collectives(LOOP, devices=512)) > len(collectives(LOOP.replace("[64,8]<=", "[512,1]<="), devices=512))
    kinds = {one.kind for one in collectives(LOOP.replace("[64,8]<=", "[512,1]<="), devices=512) if one.devices == 1}
    assert kinds == set()


def test_arrays_have_the_bytes_of_their_dtype():
    assert Array("bf16", (32, 128, 37, 1280)) in arrays(LOOP)
    assert Array("pred", ()).bytes == Array("u8", ()).bytes == 1
    assert Array("s32", (3,)).bytes == 12
    assert str(Array("f32", (2, 3))) == "f32[2,3]"


def test_activations_are_what_a_forward_loop_stacks_per_block():
    assert kept_activations(LOOP, rows=128) == Array("bf16", (32, 128, 37, 1280)).bytes
    # A part of a weight may have as many rows; it is none of the activations.
    part = Array("bf16", (32, 160, 1280))
    assert kept_activations(LOOP, rows=160) == part.bytes
    assert kept_activations(LOOP, rows=160, weights=frozenset({part.shape})) == 0
    # The backward pass reads what was counted before.
    assert kept_activations(LOOP, rows=64) == 0
    backward = LOOP.replace("jit(step)/jvp(vmap())/while", "jit(step)/transpose(jvp(vmap()))/while")
    assert kept_activations(backward, rows=128) == 0
