"""An experiment config refuses parts that contradict each other, and lists all of them."""

import dataclasses

import pytest
from support.tiny_models import tiny_clip_config, tiny_run

from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.durations import Duration
from clipa_eqx.errors import ConfigError
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import CheckpointConfig, DataConfig, DataSource, WandbConfig
from clipa_eqx.sharding import MeshConfig
from clipa_eqx.surgery.init_config import InitConfig


def data_config(*folders):
    return DataConfig(sources=tuple(DataSource(folder=name) for name in folders), image=ImageConfig(size=(8, 8)))


def test_a_run_is_frozen_hashable_and_equal_by_value():
    assert tiny_run() == tiny_run()
    assert hash(tiny_run()) == hash(tiny_run())
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_run().batch_size = 4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batch_size": 1}, "batch_size is 1"),
        ({"batch_size": 12, "mesh": MeshConfig(fsdp=8)}, "multiple of 8"),
        ({"batch_size": 12, "mesh": MeshConfig(data=2, fsdp=4)}, "multiple of 8"),
        ({"duration": Duration(fraction=0.5)}, "duration is a fraction"),
        ({"duration": Duration(steps=0)}, "duration is 0 steps"),
        ({"seed": -1}, "seed is -1"),
        ({"log_every_steps": 0}, "log_every_steps is 0"),
        ({"eval_image": EvalImageConfig(size=(8, 8))}, r"eval_image.size is \(8, 8\)"),
        ({"data": data_config("x")}, r"data.image.size is \(8, 8\)"),
        ({"zero_shot": (ZeroShotConfig(data="y"),) * 2}, "y is named more than once by evaluations of one kind"),
    ],
)
def test_contradictions_are_refused_by_field_name(fields, words):
    with pytest.raises(ConfigError, match=words):
        tiny_run(**fields)


def test_all_contradictions_are_in_one_message():
    with pytest.raises(ConfigError, match=r"(?s)data\.image\.size.*eval_image\.size.*seed"):
        tiny_run(model=tiny_clip_config(image={"image_size": (32, 32)}), seed=-1)


def test_an_unknown_data_axis_restricts_the_batch_by_the_known_axes_only():
    assert tiny_run(batch_size=12, mesh=MeshConfig(fsdp=4)).batch_size == 12


@pytest.mark.parametrize(
    "make",
    [
        lambda: CheckpointConfig(every_steps=0),
        lambda: CheckpointConfig(keep=0),
        lambda: InitConfig(source=""),
        lambda: WandbConfig(project=""),
        lambda: data_config(""),
        lambda: data_config(),
        lambda: data_config("x", "x"),
        lambda: DataSource(folder="x", weight=0.0),
        lambda: DataSource(folder="x", weight=float("nan")),
    ],
)
def test_parts_refuse_empty_and_zero(make):
    with pytest.raises(ConfigError):
        make()
