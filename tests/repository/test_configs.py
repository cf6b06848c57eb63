"""The files in configs/: they load, describe the published models, and resolve to their recorded texts.

After an intended change, record a text again:
    python scripts/train.py configs/X.py --print-config > tests/repository/golden_configs/X.json
"""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
from support.paths import ROOT

from clipa_eqx.config_files import apply_overrides, load_config
from clipa_eqx.data.images.color import ColorConfig
from clipa_eqx.durations import NO_TIME, RunLength
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import from_json, to_json
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.optim import DEFAULT_DECAY, T5X_DECAY, learning_rates, make_optimizer
from clipa_eqx.schedules import Cosine
from clipa_eqx.sharding import MeshConfig
from clipa_eqx.trees import count_params, match_by_path

GOLDEN = Path(__file__).parent / "golden_configs"
FILES = {path.stem: path for path in sorted((ROOT / "configs").glob("*.py"))}
# Files that follow the published recipes. Those of the quickstart are tuned on its own data.
RECIPES = sorted(name for name in FILES if not name.startswith(("quickstart", "minimal")))
# Files for data of the user's own, in the order in which they are run.
STARTERS = ("minimal", "minimal_tune")

# Parameters of both towers and the temperature with 32 text tokens, and the width of the text tower.
PUBLISHED = {
    "s16": (55_479_169, 384),
    "b16": (140_531_969, 512),
    "l16": (414_131_713, 768),
    "l14": (413_947_393, 768),
    "h14": (967_906_049, 1024),
    "g14": (1_684_961_409, 1280),
    "bigg14": (2_516_796_289, 1280),
}
LAION_400M = 400_000_000

# Peak learning rate, batch size, steps, warm-up steps, image tokens in training: from the reference's files.
# 1,281,167 images times 10,000 are 12.8 billion pairs.
DERIVED = {
    "h14_70px_t8": (2.048e-3, 65536, 195490, 3200, 1 + 25),
    "h14_84px_t8": (2.048e-3, 65536, 195490, 3200, 1 + 36),
    "h14_112px_t32": (1.024e-3, 32768, 85449, 1600, 1 + 64),
    "h14_224px_t32": (5.12e-5, 32768, 16000, 800, 1 + 179),
    "h14_336px_t32": (6.4e-6, 16384, 8000, 1600, 1 + 345),
    "l14_84px_t8": (2.048e-3, 65536, 195490, 3200, 1 + 36),
    "l14_224px_t32": (5.12e-5, 32768, 16000, 800, 1 + 179),
    "l14_336px_t32": (6.4e-6, 16384, 8000, 1600, 1 + 345),
    "bigg14_70px_t8": (1.024e-3, 65536, 195490, 3200, 1 + 25),
    "bigg14_84px_t8": (1.024e-3, 65536, 195490, 3200, 1 + 36),
    "bigg14_224px_t32": (2.56e-5, 16384, 32000, 0, 1 + 153),
    "bigg14_336px_t32": (6.4e-6, 16384, 8000, 1600, 1 + 345),
    "g14_70px_t8": (2.048e-3, 65536, 195490, 3200, 1 + 25),
    "g14_224px_t32": (5.12e-5, 32768, 16000, 800, 1 + 179),
    "l16_64px_t32": (1.024e-3, 32768, 85449, 1600, 1 + 16),
    "l16_224px_t32": (1.024e-4, 32768, 4000, 800, 1 + 196),
    "b16_64px_t32": (1.024e-3, 32768, 85449, 1600, 1 + 16),
    "b16_112px_t32": (1.024e-3, 32768, 85449, 1600, 1 + 49),
    "b16_160px_t32": (1.024e-3, 32768, 85449, 1600, 1 + 100),
    "b16_224px_t32": (1.024e-4, 32768, 4000, 800, 1 + 196),
    "s16_64px_t32": (1.024e-3, 32768, 85449, 1600, 1 + 16),
    "s16_112px_t32": (1.024e-3, 32768, 85449, 1600, 1 + 49),
    "s16_224px_t32": (1.024e-4, 32768, 4000, 800, 1 + 196),
}

# Kinds of recipes in the reference's files: image pool, reduction of captions and prompts, first moment, color jitter,
# resizing of scored images, remat of image and text tower. Where `plan` found the reference's remat to need too
# much memory, remat is ours; it changes no result.
FEW_TOKENS = ("gap", "syntax", "bfloat16", True, "resize_small_crop", "full", "full")
TUNING = ("gap", "truncate", "bfloat16", True, "squash", "full", "full")
CLASS_TOKEN = ("tok", "truncate", "float32", False, "resize_small_crop", "full", "none")
KINDS = {
    "h14_70px_t8": FEW_TOKENS,
    "h14_84px_t8": FEW_TOKENS,
    "h14_112px_t32": CLASS_TOKEN,
    "h14_224px_t32": TUNING,
    "h14_336px_t32": TUNING,
    "l14_84px_t8": FEW_TOKENS,
    "l14_224px_t32": TUNING,
    "l14_336px_t32": TUNING,
    "bigg14_70px_t8": FEW_TOKENS,
    "bigg14_84px_t8": FEW_TOKENS,
    "bigg14_224px_t32": TUNING,
    "bigg14_336px_t32": TUNING,
    "g14_70px_t8": FEW_TOKENS,
    "g14_224px_t32": TUNING,
    "l16_64px_t32": CLASS_TOKEN,
    "l16_224px_t32": CLASS_TOKEN,
    "b16_64px_t32": (*CLASS_TOKEN[:-2], "dots", "dots"),
    "b16_112px_t32": (*CLASS_TOKEN[:-2], "dots", "dots"),
    "b16_160px_t32": (*CLASS_TOKEN[:-2], "dots", "dots"),
    "b16_224px_t32": CLASS_TOKEN,
    "s16_64px_t32": CLASS_TOKEN,
    "s16_112px_t32": CLASS_TOKEN,
    "s16_224px_t32": CLASS_TOKEN,
}
# Steps between scorings and between checkpoints where they are not 1000.
PERIODS = {
    "b16_224px_t32": (500, 1000),
    "s16_224px_t32": (500, 1000),
    "bigg14_70px_t8": (4000, 2000),
    "bigg14_84px_t8": (4000, 2000),
    "g14_70px_t8": (4000, 2000),
}
# Models of the reference's t5x branch, and how many devices hold the parameters and moments of a model.
OF_T5X = ("bigg14", "g14")
SPLIT = {"bigg14": 16, "g14": 16, "h14": 8, "l14": 8, "l16": 1, "b16": 1, "s16": 1}


@pytest.mark.parametrize("name", FILES)
def test_every_file_loads_and_its_record_gives_it_back(name):
    config = load_config(FILES[name])
    assert from_json(ExperimentConfig, json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_how_to_run_it_and_what_to_expect(name):
    docstring = ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8"))) or ""
    for label in ("Command:", "Hardware:", "Expect:"):
        assert label in docstring
    assert f"configs/{name}.py" in docstring or "make quickstart" in docstring
    assert "Hours:" in docstring or "Time:" in docstring


@pytest.mark.parametrize("name", [*RECIPES, *STARTERS])
def test_a_recipe_needs_few_imports(name):
    imports = [node for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))) if is_import(node)]
    assert 1 <= len(imports) <= (1 if name in STARTERS else 3)


def is_import(node):
    return isinstance(node, ast.Import | ast.ImportFrom)


@pytest.mark.parametrize("name", [*RECIPES, *STARTERS])
def test_a_recipe_resolves_to_its_recorded_text(name):
    now = json.dumps(to_json(load_config(FILES[name])), indent=1) + "\n"
    assert now == (GOLDEN / f"{name}.json").read_text(encoding="utf-8")


def test_each_recorded_text_has_its_recipe():
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == sorted([*RECIPES, *STARTERS])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_the_published_number_of_parameters(name):
    model = load_config(FILES[name]).model
    total, text_width = PUBLISHED[name.split("_")[0]]
    assert count_params(abstract_clip(model)) == total - (32 - model.text.length) * text_width


@pytest.mark.parametrize("name", RECIPES)
def test_derived_numbers_are_those_of_the_reference(name):
    peak_lr, batch_size, steps, warmup, tokens = DERIVED[name]
    config = load_config(FILES[name])
    assert config.optim.peak_lr == pytest.approx(peak_lr, rel=1e-12)
    assert config.batch_size == batch_size
    run = RunLength.of(config.duration, batch_size=batch_size, data_size=LAION_400M)
    assert run.total_steps == steps
    assert [schedule.warmup.to_steps(run) for _, schedule in config.optim.schedules] == [warmup]
    assert config.model.image.visible == tokens
    last = learning_rates(config.optim, steps, run)
    assert float(last[".*"]) == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("name", RECIPES)
def test_settings_are_those_of_the_reference(name):
    config = load_config(FILES[name])
    image, text = config.model.image, config.model.text
    [scored] = config.zero_shot
    assert scored.text_reduction == config.data.text_reduction
    assert KINDS[name] == (
        *(image.pool, config.data.text_reduction, config.optim.mu_dtype, config.data.image.color is not None),
        *(config.eval_image.resize, image.blocks.remat, text.blocks.remat),
    )
    model = name.split("_")[0]
    assert config.optim.decay == (T5X_DECAY if model in OF_T5X else DEFAULT_DECAY)
    assert (image.blocks.init, text.blocks.init) == ("scaled" if model in OF_T5X else "xavier", "scaled")
    assert (image.blocks.init_depth, text.blocks.init_depth) == (None, None)  # the true depth: D1 is fixed
    assert (config.optim.weight_decay, config.optim.clip_norm, config.mesh.fsdp) == (0.2, None, SPLIT[model])
    assert (scored.class_names, scored.templates) == ("imagenet", "clip_paper")
    assert (scored.every_steps, config.checkpoint.every_steps) == PERIODS.get(name, (1000, 1000))


@pytest.mark.parametrize("name", RECIPES)
def test_settings_that_all_recipes_share_are_those_of_the_reference(name):
    config = load_config(FILES[name])
    image, text, optim, crop = config.model.image, config.model.text, config.optim, config.data.image
    assert (image.patch, image.position, text.position, text.pool, text.vocab) == (
        *("conv", "sincos2d", "learned", "last", 32_000),
    )
    for blocks in (image.blocks, text.blocks):
        assert (blocks.norm_eps, blocks.gelu, blocks.dropout, blocks.drop_path) == (1e-6, "tanh", 0.0, 0.0)
    assert config.model.temperature == pytest.approx(1 / 0.07)
    assert (optim.b1, optim.b2, optim.eps, optim.max_temperature) == (0.9, 0.95, 1e-8, None)
    assert optim.lr_factors == ((".*", 1.0),)
    [(_, schedule)] = optim.schedules
    assert (type(schedule), schedule.min_ratio, schedule.cooldown) == (Cosine, 0.0, NO_TIME)
    assert (crop.min_area, crop.max_area, crop.affine) == (0.4, 1.0, None)
    assert crop.color in (None, ColorConfig(strength=0.4, jitter_probability=0.8, gray_probability=0.2))
    assert crop.size == config.eval_image.size == image.image_size
    assert (config.eval_image.mode, config.seed, config.log_every_steps) == ("exact", 0, 50)


@pytest.mark.parametrize("name", RECIPES)
def test_a_docstring_says_which_numbers_of_devices_work(name):
    """The mesh and the batch of a recipe fit the number of devices exactly if the sentence holds."""
    docstring = " ".join((ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8"))) or "").split())
    config = load_config(FILES[name])
    split = config.mesh.fsdp
    condition = f"is a multiple of {split} that divides the batch" if split > 1 else "divides the batch"
    assert f"The number of devices {condition}; with fewer, each needs more memory." in docstring
    if "512 TPU v3 cores" in docstring:
        assert (512 % split, config.batch_size % 512) == (0, 0)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith(OF_T5X)])
def test_the_docstring_of_a_t5x_recipe_says_how_its_initial_weights_differ(name):
    """A fix of D1 must be said where the docstring claims the branch's initial weights, and the flags it gives work."""
    docstring = " ".join((ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8"))) or "").split())
    config = load_config(FILES[name])
    if config.init is not None:
        assert "The initial weights matter only with `--init none`" in docstring
        return
    depths = f"{config.model.image.blocks.depth} and {config.model.text.blocks.depth}"
    assert f"takes the depths {depths}, that file the constant 12 (D1;" in docstring
    [flags] = re.findall(r"`(--model[^`]*)`", docstring)
    as_there = apply_overrides(config, flags.split())
    assert (as_there.model.image.blocks.init_depth, as_there.model.text.blocks.init_depth) == (12, 12)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("bigg14")])
def test_a_run_of_bigg_14_that_an_older_version_began_resumes_with_the_flag_of_the_changelog(name):
    """The older rules are another text, which resuming compares, and decide the same for each leaf."""
    [flag] = re.findall(r"`(--optim\.decay [^`]*)`", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    config = load_config(FILES[name])
    older = apply_overrides(config, shlex.split(flag)).optim.decay
    assert older == (("(.*/)?(norm[12]?/weight|bias|position|log_temperature)", 0.0), (".*", 1.0))
    model = abstract_clip(config.model)
    rules = [match_by_path(decay, model, what="decay") for decay in (older, config.optim.decay)]
    assert rules[0] == rules[1]
    assert set(rules[0].values()) == {0.0, 1.0}


def test_the_starters_run_on_one_device_and_score_nothing():
    for name in STARTERS:
        config = load_config(FILES[name])
        assert (config.zero_shot, config.mesh, config.data.vocab) == ((), MeshConfig(), None)
        assert config.data.stream.workers == 0
        assert config.model.text.vocab >= 30_522  # the vocabulary of the package


def test_the_second_starter_enlarges_the_first():
    first, second = (load_config(FILES[name]) for name in STARTERS)
    assert first.init is None
    assert second.init.resize_text
    for tower in ("image", "text"):
        assert getattr(first.model, tower).blocks == getattr(second.model, tower).blocks
    assert second.model.image.image_size > first.model.image.image_size
    assert second.model.text.length > first.model.text.length


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("samples", [1, 1000, 10_000_000])
def test_a_shorter_run_has_a_shorter_warm_up(name, samples):
    config = load_config(FILES[name])
    short = apply_overrides(config, ["--duration.samples", str(samples)])
    full, run = (RunLength.of(one.duration, batch_size=one.batch_size, data_size=LAION_400M) for one in (config, short))
    assert run.total_steps < full.total_steps or samples == 10_000_000
    for _, schedule in short.optim.schedules:
        warmup = schedule.warmup.to_steps(run)
        assert warmup <= max(1, round(schedule.warmup.to_steps(full) * run.total_steps / full.total_steps) + 1)
        assert warmup < run.total_steps or run.total_steps == 1
    make_optimizer(short.optim, abstract_clip(short.model), run)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_without_scoring_and_from_random_weights(name):
    bare = apply_overrides(load_config(FILES[name]), ["--zero-shot", "none", "--init", "none"])
    assert (bare.zero_shot, bare.init) == ((), None)
    assert bare.model == load_config(FILES[name]).model


@pytest.mark.parametrize("name", RECIPES)
def test_the_rules_of_a_recipe_decide_each_leaf(name):
    config = load_config(FILES[name])
    model = abstract_clip(config.model)
    run = RunLength(total_steps=10_000, batch_size=config.batch_size, data_size=LAION_400M)
    make_optimizer(config.optim, model, run)


@pytest.mark.parametrize("name", RECIPES)
def test_names_say_pixels_and_text_tokens(name):
    config = load_config(FILES[name])
    _, pixels, tokens = name.split("_")
    assert config.model.image.image_size == (int(pixels.removesuffix("px")),) * 2
    assert config.model.text.length == int(tokens.removeprefix("t"))


@pytest.mark.parametrize("name", [name for name in RECIPES if name.split("_")[1] in ("224px", "336px")])
def test_a_fine_tuning_starts_from_the_run_of_another_recipe(name):
    config = load_config(FILES[name])
    source = load_config(FILES[Path(config.init.source).name])
    assert config.init.resize_text == (source.model.text.length != config.model.text.length)
    assert source.model.image.pool == config.model.image.pool
    assert source.model.image.patch_size == config.model.image.patch_size
    assert source.data.sources[0].folder == config.data.sources[0].folder
