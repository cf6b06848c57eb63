"""Changes that make a step smaller: their order, their flags, and what an estimate excludes."""

from dataclasses import replace

import jax
import pytest
from support.paths import ROOT

from clipa_eqx.config_files import apply_overrides, load_config
from clipa_eqx.device_memory import GIB, ProgramMemory
from clipa_eqx.planning.changes import changes
from clipa_eqx.planning.chips import CHIPS
from clipa_eqx.planning.compiled import prepare, refused_bytes
from clipa_eqx.planning.slices import Slice
from clipa_eqx.sharding import MeshConfig

SLICE = Slice("v5e:2x4", CHIPS["v5e"], (2, 4), tuple(jax.devices()[:8]))


@pytest.fixture(scope="module")
def prepared():
    config = load_config(ROOT / "configs" / "b16_64px_t32.py")
    return prepare(replace(config, batch_size=1024, mesh=MeshConfig(fsdp=2)), SLICE, records=10**6)


def flags_of(found):
    return [" ".join(change.flags) for change in found]


def test_remat_comes_before_micro_batches_and_both_come_last(prepared):
    needed = ProgramMemory(arguments=GIB, temporary=20 * GIB)
    found = changes(prepared, SLICE, needed=needed, available=15 * GIB)
    text, image = "--model.text.blocks.remat full", "--model.image.blocks.remat full"
    assert flags_of(found)[:4] == [text, image, f"{text} {image}", "--micro-batch 512"]
    assert flags_of(found)[-1] == f"{text} {image} --micro-batch 8"
    assert [change.extra for change in found[:3]] == sorted(change.extra for change in found[:3])
    assert found[2].extra == pytest.approx(2 / 9, rel=0.05)


def test_keeping_only_products_is_tried_first_where_everything_is_kept(prepared):
    config = apply_overrides(
        prepared.config, ("--model.image.blocks.remat", "none", "--model.text.blocks.remat", "none")
    )
    needed = ProgramMemory(arguments=GIB, temporary=20 * GIB)
    found = changes(prepared._replace(config=config), SLICE, needed=needed, available=15 * GIB)
    assert flags_of(found)[0] == "--model.text.blocks.remat dots --model.image.blocks.remat dots"
    assert found[0].extra < 0.02


def test_splitting_the_state_comes_first_where_it_is_enough(prepared):
    # A state of 1.6 GiB over two devices: parameters and both moments of 140 million in float32.
    needed = ProgramMemory(arguments=GIB, temporary=GIB)
    found = changes(prepared, SLICE, needed=needed, available=needed.total - GIB // 4)
    assert flags_of(found)[0] == "--mesh.fsdp 4"
    assert found[0].extra == 0
    too_little = changes(prepared, SLICE, needed=needed, available=needed.total - GIB)
    assert not [change for change in too_little if "--mesh.fsdp" in change.flags]


def test_micro_batches_that_cannot_be_small_enough_are_left_out(prepared):
    needed = ProgramMemory(arguments=GIB, temporary=60 * GIB)
    found = flags_of(changes(prepared, SLICE, needed=needed, available=16 * GIB))
    assert next(one for one in found if one.startswith("--micro-batch")) == "--micro-batch 256"


def test_the_flags_make_the_changed_config(prepared):
    needed = ProgramMemory(arguments=GIB, temporary=20 * GIB)
    for change in changes(prepared, SLICE, needed=needed, available=15 * GIB):
        assert apply_overrides(prepared.config, change.flags) == change.config


def test_a_mesh_with_all_sizes_keeps_their_product(prepared):
    fixed = prepared._replace(config=replace(prepared.config, mesh=MeshConfig(data=4, fsdp=2)))
    needed = ProgramMemory(arguments=GIB, temporary=GIB)
    found = changes(fixed, SLICE, needed=needed, available=needed.total - GIB // 4)
    assert flags_of(found)[0] == "--mesh.fsdp 4 --mesh.data 2"


@pytest.mark.parametrize("message", ["Compiler failed.", "Used lots of 1.00G hbm"])
def test_a_message_without_numbers_has_none(message):
    assert refused_bytes(message) == (0, None)
