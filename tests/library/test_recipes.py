"""The two stages that published recipes share: what each argument changes, and what the second stage inherits."""

import dataclasses

import pytest

from clipa_eqx.data.images.color import ColorConfig
from clipa_eqx.durations import NO_TIME, Duration, RunLength
from clipa_eqx.errors import ConfigError
from clipa_eqx.models.presets import preset
from clipa_eqx.recipes import finetune_stage, pretrain_stage, small_stage
from clipa_eqx.sharding import MeshConfig
from clipa_eqx.surgery.init_config import InitConfig

MODEL = preset("S/16", image_size=64, length=8)


def pretrain(**fields):
    chosen = {"records": "r", "batch_size": 512, "duration": Duration(epochs=2.0), "base_lr": 8e-6}
    return pretrain_stage(MODEL, **(chosen | fields))


def finetune(**fields):
    chosen = {"init": InitConfig(source="before"), "records": "r", "batch_size": 512, "pairs": 5120, "base_lr": 4e-7}
    return finetune_stage(MODEL, **(chosen | fields))


@pytest.mark.parametrize("batch_size", [256, 512, 65536])
def test_the_peak_learning_rate_grows_with_the_batch(batch_size):
    assert pretrain(batch_size=batch_size).optim.peak_lr == pytest.approx(8e-6 * batch_size / 256)


@pytest.mark.parametrize(("batch_size", "steps", "warmup"), [(512, 10, 2), (256, 20, 4), (500, 10, 2)])
def test_pairs_of_a_second_stage_become_whole_steps(batch_size, steps, warmup):
    made = finetune(batch_size=batch_size, warmup_pairs=1024)
    [(pattern, schedule)] = made.optim.schedules
    run = RunLength.of(made.duration)
    assert (pattern, made.duration, schedule.warmup.to_steps(run)) == (".*", Duration(steps=steps), warmup)


def test_the_warm_up_of_a_second_stage_scales_with_its_length():
    made = finetune(batch_size=512, pairs=51_200, warmup_pairs=10_240)
    [(_, schedule)] = made.optim.schedules
    assert schedule.warmup.to_steps(RunLength(total_steps=100)) == 20
    assert schedule.warmup.to_steps(RunLength(total_steps=10)) == 2
    [(_, without)] = finetune().optim.schedules
    assert without.warmup == NO_TIME


def test_fewer_pairs_than_a_batch_are_no_stage():
    with pytest.raises(ConfigError, match="duration is 0 steps"):
        finetune(pairs=511)


def test_images_of_training_and_scoring_have_the_size_of_the_model():
    for stage in (pretrain(), finetune()):
        assert stage.data.image.size == stage.eval_image.size == stage.model.image.image_size == (64, 64)


def test_captions_and_prompts_are_cut_alike():
    for reduction in ("truncate", "syntax"):
        made = pretrain(text_reduction=reduction)
        assert {made.data.text_reduction, *(one.text_reduction for one in made.zero_shot)} == {reduction}


CHANGES = {
    "mu_dtype": ("bfloat16", lambda made: made.optim.mu_dtype),
    "color": (ColorConfig(strength=0.1), lambda made: made.data.image.color),
    "decay": (((".*", 0.5),), lambda made: made.optim.decay),
    "mesh": (MeshConfig(fsdp=8), lambda made: made.mesh),
    "score_every_steps": (77, lambda made: made.zero_shot[0].every_steps),
    "records": ("elsewhere", lambda made: made.data.sources[0].folder),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("stage", [pretrain, finetune])
def test_an_argument_sets_its_field_and_no_other(name, stage):
    value, field = CHANGES[name]
    made, plain = stage(**{name: value}), stage()
    assert field(made) == value
    assert field(plain) != value
    differing = [f.name for f in dataclasses.fields(made) if getattr(made, f.name) != getattr(plain, f.name)]
    assert len(differing) == 1


def test_a_second_stage_differs_from_the_first_only_by_its_start_and_its_evaluation():
    first = pretrain(duration=Duration(steps=10), base_lr=4e-7, warmup=Duration(steps=0))
    second = finetune(resize="resize_small_crop")
    assert second.init == InitConfig(source="before")
    assert second.eval_image.resize == "resize_small_crop"
    assert dataclasses.replace(second, init=None, eval_image=first.eval_image) == first


def test_a_small_stage_has_no_scoring_and_no_processes_and_takes_its_rate_as_given():
    fields = {"records": "r", "batch_size": 32, "duration": Duration(samples=64), "peak_lr": 3e-4}
    made = small_stage(MODEL, **fields, init=InitConfig(source="before"))
    assert (made.zero_shot, made.data.stream.workers, made.optim.peak_lr) == ((), 0, 3e-4)
    assert made.data.image.size == made.eval_image.size == (64, 64)
    assert dataclasses.replace(made, init=None) == small_stage(MODEL, **fields)
