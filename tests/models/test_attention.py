"""Attention by cuDNN: when it is chosen, that it lowers for CUDA, and that it computes what XLA's attention computes.

A stand-in computes on CPUs what cuDNN's two kernels compute, so the checks of values and gradients hold for all that is
around the kernels: ``vmap``, the scan over blocks, recomputation, micro-batches and meshes.
"""

import dataclasses
import functools
import re
from types import SimpleNamespace

import jax
import jax.random as jr
import numpy as np
import pytest
from support.cudnn_on_cpu import any_dtype, cudnn_present, register_stand_in
from support.tiny_models import tiny_clip_config, tiny_run

from clipa_eqx.durations import RunLength
from clipa_eqx.errors import ConfigError
from clipa_eqx.models.clip import CLIP, abstract_clip
from clipa_eqx.models.kernels import XLA_KERNELS, Kernels, choose_kernels, with_kernels
from clipa_eqx.models.presets import PRESETS, preset
from clipa_eqx.optim import make_optimizer
from clipa_eqx.precision import Precision
from clipa_eqx.sharding import MeshConfig, batch_sharding, make_mesh, shardings_for
from clipa_eqx.training.compiled_step import compile_step
from clipa_eqx.training.gradients import batch_gradients
from clipa_eqx.training.state import abstract_state
from clipa_eqx.trees import leaves_by_path

pytestmark = pytest.mark.usefixtures("quick_compile", "stand_in")

CUDNN = Kernels("cudnn", "cudnn")
BFLOAT16 = Precision(compute="bfloat16")
FLOAT32 = Precision()
TOLERANCE = 1e-5  # of each leaf's largest value, in float32
MESHES = {"1": (1, 1, 1), "2x2x2": (2, 2, 2)}


@pytest.fixture(scope="module")
def stand_in():
    register_stand_in()


def gpu(capability="9.0"):
    return SimpleNamespace(platform="gpu", device_kind="a GPU", compute_capability=capability)


def test_auto_takes_xla_where_jax_finds_no_cudnn():
    arguments = {"compute": "bfloat16", "device": gpu()}
    assert choose_kernels("auto", preset("H/14"), **arguments) == XLA_KERNELS
    with pytest.raises(ConfigError, match=r'attention is "cudnn", but JAX refuses it \(cuDNN is not detected\.\); fix'):
        choose_kernels("cudnn", preset("H/14"), **arguments)


def choice_for(choice="auto", *, config=None, compute="bfloat16", device=None, tensor=1):
    config = preset("H/14") if config is None else config
    device = gpu() if device is None else device
    with cudnn_present():
        return choose_kernels(choice, config, compute=compute, device=device, tensor=tensor)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gets_cudnn_on_a_gpu_in_bfloat16(name):
    assert choice_for(config=preset(name)) == choice_for("cudnn", config=preset(name)) == CUDNN
    assert choice_for("xla", config=preset(name)) == XLA_KERNELS


REFUSED = {
    "float32": ({"compute": "float32"}, r'precision\.compute is "float32", and cuDNN needs "bfloat16"'),
    "cpu": ({"device": jax.devices("cpu")[0]}, r"the devices are no NVIDIA GPUs \(cpu, cpu\)"),
    "amd": ({"device": gpu("gfx942")}, r"the devices are no NVIDIA GPUs \(a GPU, gpu\)"),
    "old": ({"device": gpu("7.5")}, r"a GPU has compute capability 7\.5, and cuDNN needs 8\.0"),
    "odd heads": (
        {"config": tiny_clip_config(blocks={"width": 24, "heads": 2})},
        r"heads of model\.image are 12 wide \(24 / 2\), and cuDNN needs a multiple of 8 up to 256, and heads of model",
    ),
    "wide heads": (
        {"config": tiny_clip_config(blocks={"width": 272, "heads": 2}), "device": gpu("8.9")},
        r"heads of model\.image are 136 wide \(272 / 2\), and cuDNN needs a multiple of 8 up to 128",
    ),
    "split heads": ({"tensor": 3}, r"mesh\.tensor 3 does not divide the 16 heads of model\.image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_a_condition_does_not_hold_auto_takes_xla_and_cudnn_is_refused(name):
    arguments, message = REFUSED[name]
    assert choice_for(**arguments) == XLA_KERNELS
    with pytest.raises(
        ConfigError, match=f'^attention is "cudnn", but {message}.*; fix that, or set attention to "auto"$'
    ):
        choice_for("cudnn", **arguments)


def test_auto_decides_for_each_tower():
    config = tiny_clip_config(text={"blocks": dataclasses.replace(tiny_clip_config().text.blocks, width=24)})
    assert choice_for(config=config) == Kernels("cudnn", "xla")


def test_wide_heads_need_a_newer_gpu():
    config = tiny_clip_config(blocks={"width": 272, "heads": 2})
    assert choice_for(config=config, device=gpu("9.0")) == CUDNN
    assert choice_for(config=config, device=gpu("8.0")) == XLA_KERNELS


def test_a_config_that_no_device_could_run_is_refused_before_a_run():
    with pytest.raises(ConfigError, match=r'attention is "cudnn", but precision\.compute is "float32"'):
        tiny_run(attention="cudnn")
    assert tiny_run(attention="cudnn", precision=BFLOAT16).attention == "cudnn"


def test_a_run_refuses_cudnn_on_cpus_before_it_compiles():
    config = tiny_run(attention="cudnn", precision=BFLOAT16)
    mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
    optimizer = make_optimizer(config.optim, abstract_clip(config.model), RunLength(total_steps=10))
    with pytest.raises(ConfigError, match=r"the devices are no NVIDIA GPUs \(cpu, cpu\)"):
        compile_step(config, optimizer, abstract_state(config.model, optimizer), mesh)


def gradients(kernels, *, mesh, micro_batch=None, precision=BFLOAT16):
    """The gradients of a batch and its loss, for a mesh."""

    def compute(model, images, tokens):
        return batch_gradients(
            model,
            images,
            tokens,
            key=jr.key(3),
            precision=precision,
            mesh=mesh,
            micro_batch=micro_batch,
            kernels=kernels,
        )

    return compute


@functools.cache
def tiny(remat="none"):
    """A model with an odd number of tokens in the image tower, 5, and an even one in the text tower, 8."""
    return CLIP.init(tiny_clip_config(blocks={"remat": remat, "dropout": 0.1}), key=jr.key(0))


@functools.cache
def computed(kernels, *, remat="none", sizes=(1, 1, 1), micro_batch=None, precision=FLOAT32):
    """The gradients and the loss on a mesh; sizes are those of (data, fsdp, tensor)."""
    model = tiny(remat)
    images = jr.randint(jr.key(1), (16, 16, 16, 3), 0, 256).astype(np.uint8)
    batch = images, jr.randint(jr.key(2), (16, 8), 0, 64)
    chosen = MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    mesh = make_mesh(chosen, devices=jax.devices()[: np.prod(sizes)])
    shardings, split = shardings_for(abstract_clip(model.config), mesh), batch_sharding(mesh)
    with jax.set_mesh(mesh), cudnn_present(), any_dtype():
        function = gradients(kernels, mesh=mesh, micro_batch=micro_batch, precision=precision)
        lowered = jax.jit(function, in_shardings=(shardings, split, split)).lower(model, *batch)
        grads, out = lowered.compile()(jax.device_put(model, shardings), *jax.device_put(batch, split))
    return {path: np.asarray(leaf) for path, leaf in leaves_by_path(grads).items()}, float(out.loss)


def assert_those_of_xla(ours):
    (grads, loss), (wanted, wanted_loss) = ours, computed(XLA_KERNELS)
    assert loss == pytest.approx(wanted_loss, rel=TOLERANCE)
    assert grads.keys() == wanted.keys()
    for path, value in wanted.items():
        close = TOLERANCE * max(np.abs(value).max(), 0.01)  # gradients of the bias of keys are rounding errors of 0
        np.testing.assert_allclose(grads[path], value, atol=close, rtol=0, err_msg=path)


@pytest.mark.parametrize("name", MESHES)
def test_values_and_gradients_on_a_mesh_are_those_of_xla(name):
    assert_those_of_xla(computed(CUDNN, sizes=MESHES[name]))


def test_in_bfloat16_it_is_as_close_to_float32_as_xla_is():
    truth, _ = computed(XLA_KERNELS)

    def error(kernels):
        found, _ = computed(kernels, precision=BFLOAT16)
        return np.sqrt(sum(np.sum((found[path] - value) ** 2) for path, value in truth.items()))

    assert 0 < error(CUDNN) < 1.5 * error(XLA_KERNELS)


@pytest.mark.slow
def test_values_and_gradients_do_not_depend_on_what_is_computed_again():
    """With 16 pairs, the last of three micro-batches has 4."""
    assert_those_of_xla(computed(CUDNN, remat="full", micro_batch=6))


def test_attention_pooling_keeps_the_kernel_of_xla():
    """Its one query is the same for all images, which the rule of cuDNN's attention for ``vmap`` does not allow."""
    chosen = with_kernels(CLIP.init(tiny_clip_config(image={"pool": "map"}), key=jr.key(0)), CUDNN)
    assert chosen.image.map_head is not None
    kernels = chosen.image.blocks.attn.kernel, chosen.text.blocks.attn.kernel, chosen.image.map_head.attn.kernel
    assert kernels == ("cudnn", "cudnn", "xla")


# Pixels, text tokens, and the tokens of both towers that cuDNN gets: an odd number gets one more.
SHAPES = {"H/14": (84, 8, (38, 8)), "L/14": (224, 31, (258, 32)), "B/16": (112, 16, (50, 16))}


@pytest.mark.parametrize(
    ("name", "remat", "kernels"),
    [("H/14", "none", CUDNN), ("L/14", "full", CUDNN), ("B/16", "none", Kernels("cudnn", "xla"))],
)
def test_the_gradients_of_a_preset_lower_for_cuda_to_kernels_of_the_complete_batch(name, remat, kernels):
    """Per tower one call forward, again if activations are recomputed, and one backward, in the bodies of the scans."""
    size, length, tokens = SHAPES[name]
    config = with_remat(preset(name, image_size=size, length=length), remat)
    rows = jax.ShapeDtypeStruct((6, size, size, 3), np.uint8), jax.ShapeDtypeStruct((6, length), np.int32)
    with cudnn_present():
        traced = jax.jit(gradients(kernels, mesh=None)).trace(abstract_clip(config), *rows)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"@__cudnn\$(\w+)\(.*?mask_type\\22: \\22(\w+)\\22.*? -> \(tensor<(\w+)>", program)
    wanted = []
    for tower, count, kernel in zip((config.image, config.text), tokens, kernels, strict=True):
        if kernel == "xla":
            continue
        blocks, mask = tower.blocks, "NO_MASK" if count in (8, 16, 50) else "PADDING"
        shape = f"6x{blocks.heads}x{count}x{blocks.width // blocks.heads}xbf16"
        wanted += (1 if remat == "none" else 2) * [("fmhaSoftmax", mask, shape)]
        wanted += [("fmhaSoftmaxBackward", mask, shape)]
    assert sorted(calls) == sorted(wanted)


def with_remat(config, remat):
    image, text = (
        dataclasses.replace(tower, blocks=dataclasses.replace(tower.blocks, remat=remat))
        for tower in (config.image, config.text)
    )
    return dataclasses.replace(config, image=image, text=text)
