"""Configs survive JSON unchanged; records that do not fit are refused with every problem by path."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
from support.tiny_models import tiny_clip_config, tiny_run

from clipa_eqx.data.images.affine import AffineConfig
from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.color import ColorConfig
from clipa_eqx.durations import Duration
from clipa_eqx.errors import ConfigError
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import CheckpointConfig, DataConfig, DataSource, ExperimentConfig, WandbConfig
from clipa_eqx.json_config import LATER_FIELDS, from_json, to_json
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.optim import OptimConfig
from clipa_eqx.precision import Precision
from clipa_eqx.schedules import Cosine, Polynomial, Rsqrt, Stair
from clipa_eqx.surgery.init_config import InitConfig

LABELED = ZeroShotConfig(data="y")


def random_duration(rng):
    return rng.choice(
        [
            Duration(steps=rng.randrange(1, 9)),
            Duration(samples=rng.randrange(1, 10**12)),
            Duration(epochs=rng.uniform(0.1, 9)),
        ]
    )


def random_schedule(rng):
    return rng.choice(
        [
            None,
            Cosine(warmup=random_duration(rng), min_ratio=rng.random()),
            Polynomial(power=1 + rng.random(), cooldown=random_duration(rng)),
            Rsqrt(timescale_steps=rng.randrange(1, 99), reference_batch_size=rng.choice([None, 7])),
            Stair(steps=(2, 5), factors=(0.5, 0.1)),
        ]
    )


def random_run(seed):
    rng = random.Random(seed)
    return tiny_run(
        optim=OptimConfig(
            peak_lr=rng.random(),
            schedules=tuple((rng.choice(["é", ".*", ""]), random_schedule(rng)) for _ in range(rng.randrange(4))),
            mu_dtype=rng.choice(["float32", "bfloat16"]),
            clip_norm=rng.choice([None, 1e-30 * rng.random()]),
        ),
        duration=random_duration(rng),
        data=DataConfig(
            sources=(DataSource(folder='\\ "ü'), DataSource(folder="y", weight=rng.random() + 0.1))[
                : rng.randrange(1, 3)
            ],
            image=ImageConfig(
                size=(16, 16),
                color=rng.choice([None, ColorConfig(strength=rng.random())]),
                affine=rng.choice([None, AffineConfig(scale=(0.5, 2.0))]),
            ),
            vocab=rng.choice([None, "v.txt"]),
        ),
        init=rng.choice([None, InitConfig(source="x", keep_initial=("a", "b")[: rng.randrange(3)])]),
        zero_shot=(LABELED, ZeroShotConfig(data="z", templates=("a {}", "b {}")))[: rng.randrange(3)],
        wandb=rng.choice([None, WandbConfig(project="p", offline=rng.random() < 0.5)]),
        tensorboard=rng.random() < 0.5,
    )


@pytest.mark.parametrize("seed", range(40))
def test_a_run_comes_back_equal_through_text(seed):
    run = random_run(seed)
    record = to_json(run)
    restored = from_json(ExperimentConfig, json.loads(json.dumps(record)))
    assert restored == run
    assert json.dumps(to_json(restored)) == json.dumps(record)


def test_keys_follow_the_fields():
    record = to_json(tiny_run())
    assert list(record) == [field.name for field in dataclasses.fields(ExperimentConfig)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    one: float | None
    several: tuple[float, ...] = ()
    count: int | float = 1


def test_a_whole_number_in_a_float_field_is_recorded_as_a_float():
    assert json.dumps(to_json(Rates(one=1, several=(2,)))) == '{"one": 1.0, "several": [2.0], "count": 1}'
    assert json.dumps(to_json(from_json(Rates, {"one": 1, "several": [2], "count": 1}))) == json.dumps(
        to_json(Rates(one=1.0, several=(2.0,)))
    )


def test_only_what_may_be_of_several_classes_is_tagged():
    record = to_json(tiny_run())
    assert record["optim"]["schedules"][0][1]["type"] == "Cosine"
    assert "type" not in record["optim"]


def test_unknown_missing_and_mistyped_fields_are_listed_at_once_by_path():
    record = to_json(tiny_run())
    record["optim"]["peak_lrr"] = record["optim"].pop("peak_lr")
    record["model"]["image"]["pool"] = "gapp"
    record["data"]["image"]["size"] = [16]
    record["optim"]["schedules"][0][1]["type"] = "Cosinus"
    record["batch_size"] = "8"
    record["log_every_steps"] = True
    with pytest.raises(ConfigError) as caught:
        from_json(ExperimentConfig, record, where="run.json")
    message = str(caught.value)
    for words in (
        "run.json does not describe a ExperimentConfig",
        "optim/peak_lrr: unknown",
        "optim/peak_lr: missing",
        "model/image/pool: got 'gapp', expected one of 'gap'",
        "data/image/size: got [16], expected a list of 2",
        "optim/schedules/0/1/type: got 'Cosinus', expected one of Cosine",
        "batch_size: got '8', expected int",
        "log_every_steps: got True, expected int",
    ):
        assert words in message


def test_a_field_with_a_default_must_be_recorded_too():
    record = to_json(tiny_run())
    del record["seed"]
    with pytest.raises(ConfigError, match="seed: missing"):
        from_json(ExperimentConfig, record)


def test_what_a_class_refuses_is_reported_with_its_path():
    record = to_json(tiny_clip_config())
    record["text"]["blocks"]["heads"] = 3
    with pytest.raises(ConfigError, match=r"text/blocks: BlockConfig.heads=3 does not divide"):
        from_json(type(tiny_clip_config()), record)


def test_null_is_refused_where_nothing_may_be_absent():
    record = to_json(tiny_run())
    record["duration"] = None
    with pytest.raises(ConfigError, match="duration: got None, expected the fields of Duration"):
        from_json(ExperimentConfig, record)


def test_records_of_version_0_1_0_are_read_under_current_names():
    config = ImageConfig(size=(8, 8), color=ColorConfig())
    former = to_json(config)
    former["colour"] = former.pop("color")
    assert from_json(ImageConfig, former) == config


def test_a_recorded_run_of_version_0_1_0_is_read_with_the_fields_that_came_later():
    """A new field of a config needs its row in ``LATER_FIELDS``, or nobody's run folder can be read."""
    record = json.loads(Path(__file__).with_name("run_of_0_1_0.json").read_text(encoding="utf-8"))
    config = from_json(ExperimentConfig, record)
    assert (config.on_non_finite, config.checkpoint.keep_every_steps, config.checkpoint.keep_best) == (
        "stop",
        None,
        None,
    )
    assert (config.tensorboard, config.checkpoint.checksums, config.model.bias) == (False, True, None)
    assert record["loss"] == "sharded"
    assert config.loss == LossConfig(kind="softmax", algorithm="sharded")
    assert config.init is not None
    assert config.init.text_rows == "resample"
    assert config.precision.gradients == config.precision.compute
    assert [one.commas_in_names for one in config.zero_shot] == [False]
    assert (config.batch_size, config.optim.schedules[0][1].warmup) == (32768, Duration(steps=800))


def test_fields_that_came_later_exist_and_are_recorded_from_now_on():
    classes = (CheckpointConfig, CLIPConfig, ExperimentConfig, InitConfig, Precision, ZeroShotConfig)
    assert {cls.__name__ for cls in classes} >= {name for name, _ in LATER_FIELDS}
    recorded = to_json(tiny_run(checkpoint=CheckpointConfig(checksums=False), tensorboard=True))
    assert from_json(ExperimentConfig, recorded).tensorboard
    assert not from_json(ExperimentConfig, recorded).checkpoint.checksums
