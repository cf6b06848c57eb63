"""Kernels of attention: the products that XLA compiles, and cuDNN's flash attention on NVIDIA GPUs.

Both compute the same function; results differ by rounding. cuDNN has conditions on dtype, device and width of the
heads, but accepts every number of tokens. Attention pooling has one query per image and is always XLA's.
"""

import dataclasses
import re
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.blocks import Block, BlockConfig
from clipa_eqx.models.clip import CLIP, CLIPConfig
from clipa_eqx.models.cudnn_attention import cudnn_attention
from clipa_eqx.models.layers import AttentionKernel

AttentionChoice = Literal["auto", "cudnn", "xla"]

_OLDEST = (8, 0)
_WIDE_HEADS = (9, 0)
"""Compute capabilities: the oldest with flash attention, and the oldest whose heads may be 256 wide instead of 128."""


class Kernels(NamedTuple):
    """The kernel of the blocks of each tower."""

    image: AttentionKernel = "xla"
    text: AttentionKernel = "xla"


XLA_KERNELS = Kernels()


def choose_kernels(
    choice: AttentionChoice, config: CLIPConfig, *, compute: str, device: Any, tensor: int = 1
) -> Kernels:
    """Choose the kernel of each tower for a device.

    Args:
        choice: "auto" takes cuDNN for each tower whose conditions hold, "cudnn" for both towers or not at all.
        compute: dtype of the activations.
        device: a device of the mesh.
        tensor: devices that split the heads.

    Raises:
        ConfigError: "cudnn" for a tower or a device whose conditions do not hold.
    """
    if choice == "xla":
        return XLA_KERNELS
    general = [*_dtype_problems(compute), *_device_problems(device)]
    general = general or _jax_problems()
    image = _head_problems("image", config.image.blocks, tensor=tensor, device=device)
    text = _head_problems("text", config.text.blocks, tensor=tensor, device=device)
    if choice == "cudnn" and (problems := [*general, *image, *text]):
        raise ConfigError(cudnn_refusal(problems))
    return Kernels("xla" if general or image else "cudnn", "xla" if general or text else "cudnn")


def cudnn_problems(config: CLIPConfig, *, compute: str, tensor: int) -> list[str]:
    """The conditions of cuDNN that a config does not meet on any device; arguments as of ``choose_kernels``."""
    towers = {"image": config.image.blocks, "text": config.text.blocks}
    found = [_head_problems(name, blocks, tensor=tensor, device=None) for name, blocks in towers.items()]
    return [*_dtype_problems(compute), *(problem for one in found for problem in one)]


def cudnn_refusal(problems: list[str]) -> str:
    """The message of the error if "cudnn" is chosen and its conditions do not hold."""
    return f'attention is "cudnn", but {", and ".join(problems)}; fix that, or set attention to "auto"'


def with_kernels(model: CLIP, kernels: Kernels) -> CLIP:
    """The model whose blocks compute attention with these kernels."""
    if kernels == XLA_KERNELS:
        return model

    def blocks(blocks: Block, kernel: AttentionKernel) -> Block:
        return dataclasses.replace(blocks, attn=dataclasses.replace(blocks.attn, kernel=kernel))

    image = dataclasses.replace(model.image, blocks=blocks(model.image.blocks, kernels.image))
    text = dataclasses.replace(model.text, blocks=blocks(model.text.blocks, kernels.text))
    return dataclasses.replace(model, image=image, text=text)


def _dtype_problems(compute: str) -> list[str]:
    return [] if compute == "bfloat16" else [f'precision.compute is "{compute}", and cuDNN needs "bfloat16"']


def _device_problems(device: Any) -> list[str]:
    found = _capability(device)
    if found is None:
        return [f"the devices are no NVIDIA GPUs ({device.device_kind}, {device.platform})"]
    if found < _OLDEST:
        return [f"{device.device_kind} has compute capability {found[0]}.{found[1]}, and cuDNN needs 8.0"]
    return []


def _jax_problems() -> list[str]:
    """The reason for which JAX would not trace cuDNN's attention here, such as a cuDNN that is missing or too old."""
    tokens = jax.ShapeDtypeStruct((2, 1, 64), jnp.bfloat16)
    try:
        jax.eval_shape(jax.grad(lambda x: jnp.sum(cudnn_attention(x, x, x))), tokens)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return [f"JAX refuses it ({error})"]
    return []


def _head_problems(name: str, blocks: BlockConfig, *, tensor: int, device: Any | None) -> list[str]:
    capability = None if device is None else _capability(device)
    widest = 256 if capability is None or capability >= _WIDE_HEADS else 128
    width, problems = blocks.width // blocks.heads, list[str]()
    if width % 8 or width > widest:
        problems.append(
            f"heads of model.{name} are {width} wide ({blocks.width} / {blocks.heads}), and cuDNN needs a multiple of "
            f"8 up to {widest}"
        )
    if blocks.heads % tensor:
        problems.append(f"mesh.tensor {tensor} does not divide the {blocks.heads} heads of model.{name}")
    return problems


def _capability(device: Any) -> tuple[int, int] | None:
    """The compute capability of an NVIDIA GPU, such as (9, 0); None for other devices."""
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return None if found is None else (int(found[1]), int(found[2]))
