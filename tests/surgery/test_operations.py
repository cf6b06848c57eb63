"""Operations as values of a config do what the functions of their names do, and their shapes are known before."""

import jax
import jax.random as jr
import pytest
from support.leaves import as_numpy, assert_bit_equal
from support.tiny_models import PIECES, tiny_clip, tiny_clip_config, tiny_run

from clipa_eqx import surgery
from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.json_config import from_json, to_json
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.sharding import RULES
from clipa_eqx.surgery.init_config import InitConfig, abstract_model
from clipa_eqx.surgery.operations import Materials, apply_operations, report_lines
from clipa_eqx.training.start import Source, _materials
from clipa_eqx.trees import leaves_by_path, match_by_path

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jr.key(7)
TARGETS = ("text/blocks/attn/(q|v)/weight",)
NEW_PIECES = (*PIECES[:10], "new", *PIECES[10:40])
STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3)}

# The operation, and the function of its name.
OPERATIONS = {
    "ResizeImage": (surgery.ResizeImage(image_size=(24, 24)), lambda m: surgery.resize_image(m, image_size=(24, 24))),
    "ResizeText": (
        surgery.ResizeText(length=5, rows="first"),
        lambda m: surgery.resize_text(m, length=5, rows="first"),
    ),
    "ResizePatch": (surgery.ResizePatch(patch_size=(4, 4)), lambda m: surgery.resize_patch(m, patch_size=(4, 4))),
    "LearnImagePosition": (surgery.LearnImagePosition(), surgery.learn_image_position),
    "PixelStatistics": (
        surgery.PixelStatistics(**STATISTICS),
        lambda m: surgery.with_pixel_statistics(m, **STATISTICS),
    ),
    "SwapVocabulary": (
        surgery.SwapVocabulary(rows=50),
        lambda m: surgery.swap_vocabulary(m, old=PIECES, new=NEW_PIECES, rows=50, key=jr.fold_in(KEY, 0)),
    ),
    "SwapHead": (surgery.SwapHead(embed=12), lambda m: surgery.swap_head(m, embed=12, key=jr.fold_in(KEY, 0))),
    "PruneDepth": (surgery.PruneDepth(image=(1,)), lambda m: surgery.prune_depth(m, image=(1,))),
    "Interpolate": (
        surgery.Interpolate(source="1", alpha=0.25),
        lambda m: surgery.interpolate(m, tiny_clip(1), alpha=0.25),
    ),
    "Average": (
        surgery.Average(sources=("1", "2"), weights=(1.0, 2.0, 1.0)),
        lambda m: surgery.average([m, tiny_clip(1), tiny_clip(2)], weights=(1.0, 2.0, 1.0)),
    ),
    "Lora": (
        surgery.Lora(rank=2, alpha=4.0, targets=TARGETS),
        lambda m: surgery.lora(m, rank=2, alpha=4.0, targets=TARGETS, key=jr.fold_in(KEY, 0)),
    ),
}
MATERIALS = Materials(load=lambda name, _: tiny_clip(int(name)), pieces=lambda: (PIECES, NEW_PIECES))


def test_every_operation_has_a_case():
    assert {type(operation).__name__ for operation, _ in OPERATIONS.values()} == set(OPERATIONS)
    assert {one.__name__ for one in surgery.Surgery.__args__} == set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_does_what_its_function_does(name):
    operation, function = OPERATIONS[name]
    model, [report] = apply_operations(tiny_clip(0), (operation,), MATERIALS, key=KEY)
    expected = function(tiny_clip(0))
    assert jax.tree.structure(model) == jax.tree.structure(expected.model)
    assert_bit_equal(as_numpy(model), as_numpy(expected.model))
    assert tuple(report_lines([report])) == expected.report.changes != ()


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_shapes_of_a_result_are_known_without_weights(name):
    operation, function = OPERATIONS[name]
    abstract = abstract_clip(tiny_clip_config())
    made = jax.eval_shape(lambda model: apply_operations(model, (operation,), MATERIALS, key=KEY)[0], abstract)
    expected = leaves_by_path(jax.eval_shape(lambda model: function(model).model, abstract))
    shapes = {path: (leaf.shape, leaf.dtype) for path, leaf in leaves_by_path(made).items()}
    assert shapes == {path: (leaf.shape, leaf.dtype) for path, leaf in expected.items()}
    match_by_path(RULES, made, what="sharding.RULES", unused="allow")  # each has a place on a mesh


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_record_gives_an_operation_back(name):
    init = InitConfig(source="runs/first", surgery=(OPERATIONS[name][0],))
    assert from_json(InitConfig, to_json(init)) == init


def test_a_record_without_surgery_and_trainable_is_that_of_a_run_that_has_none():
    config = tiny_run(init=InitConfig(source="runs/first"))
    record = to_json(config)
    del record["trainable"], record["init"]["surgery"]
    assert from_json(type(config), record) == config


def test_an_error_names_the_place_of_the_operation():
    operations = (surgery.ResizeText(length=5), surgery.PruneDepth(text=(5,)))
    with pytest.raises(ConfigError, match=r"init\.surgery\.1 \(PruneDepth\): prune_depth: text is \[5\]"):
        apply_operations(tiny_clip(0), operations, MATERIALS, key=KEY)


def test_an_error_of_a_model_to_mix_in_names_the_place_too():
    def load(name, is_swapped):
        raise CheckpointError(f"{name} does not exist")

    operations = (surgery.LearnImagePosition(), surgery.Interpolate(source="runs/lost", alpha=0.5))
    with pytest.raises(CheckpointError, match=r"^init\.surgery\.1 \(Interpolate\): runs/lost does not exist"):
        apply_operations(tiny_clip(0), operations, MATERIALS._replace(load=load), key=KEY)


def test_a_model_to_mix_in_has_the_vocabulary_of_its_place():
    """Before SwapVocabulary that of the source, after it that of the run; the tables have equal shapes."""
    source, old, new, third = (
        Source(tiny_clip(i), name, None) for i, name in enumerate(("old", "old", "new", "third"))
    )
    models = {"old": old, "new": new, "third": third}

    def start(*operations, **fields):
        init = InitConfig(source="first", surgery=operations, **fields)
        config = tiny_run(init=init)
        materials = _materials(config, source, lambda one: models[one.source], vocab_sha256="new")
        materials = materials._replace(pieces=lambda: (PIECES, (*PIECES[1:], "new")))
        apply_operations(source.model, operations, materials, key=KEY)

    def mix(name):
        return surgery.Average(sources=(name,))

    swap = surgery.SwapVocabulary(rows=tiny_clip_config().text.vocab)
    start(mix("old"), swap, mix("new"))
    place = r"init\.surgery\.{} \(Average\): {} was trained with another vocabulary than {}"
    with pytest.raises(ConfigError, match=place.format(1, "old", "data.vocab")):
        start(swap, mix("old"))
    with pytest.raises(ConfigError, match=place.format(0, "new", "that of first")):
        start(mix("new"), swap)
    start(mix("old"), mix("new"), keep_initial=("text/token/weight",))
    with pytest.raises(ConfigError, match=place.format(0, "third", "that of first")):
        start(mix("third"), keep_initial=("text/token/weight",))


def test_factors_are_the_last_operation():
    lora = OPERATIONS["Lora"][0]
    for operations in ((lora, surgery.LearnImagePosition()), (lora, lora)):
        with pytest.raises(ConfigError, match="put it last, and once"):
            InitConfig(source="runs/first", surgery=operations)


def test_a_run_with_factors_must_say_what_is_trained():
    init = InitConfig(source="runs/first", surgery=(OPERATIONS["Lora"][0],))
    with pytest.raises(ConfigError, match="nothing says what is trained; set trainable"):
        tiny_run(init=init)
    assert tiny_run(init=init, trainable=(surgery.LORA_FACTORS,)).trainable


def test_trainable_without_patterns_and_with_another_runs_optimizer_is_refused():
    with pytest.raises(ConfigError, match="trainable is empty"):
        tiny_run(trainable=())
    with pytest.raises(ConfigError, match="leave out trainable"):
        tiny_run(trainable=("text/.*",), init=InitConfig(source="runs/first", optimizer=True))
    with pytest.raises(ConfigError, match="leave out resize_text, resize_image, keep_initial and surgery"):
        InitConfig(source="runs/first", optimizer=True, surgery=(surgery.LearnImagePosition(),))


def test_each_layer_has_the_factors_that_its_config_describes():
    init = InitConfig(source="runs/first", surgery=(OPERATIONS["Lora"][0],))
    made = abstract_model(tiny_clip_config(), init)
    expected = OPERATIONS["Lora"][1](tiny_clip(0)).model
    assert jax.tree.structure(made) == jax.tree.structure(expected)
    assert leaves_by_path(made)["text/blocks/attn/q/lora_down"].shape == (2, 2, 32)
