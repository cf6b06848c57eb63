"""Names of an open_clip state dict without the prefixes of wrappers, and refusal of other programs' layouts."""

from collections.abc import Iterable
from pathlib import Path

from clipa_eqx.errors import ConversionError, counted

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that ``DataParallel``, ``torch.compile``, FSDP and activation checkpointing put into names, in any order."""

_NAMES = ("positional_embedding", "text_projection")
_PREFIXES = ("visual.", "transformer.", "token_embedding.", "ln_final.")
"""Names of open_clip, except ``logit_scale``, which other programs have too."""

_LAYOUTS = {
    "Hugging Face transformers (CLIPModel)": ("text_model.", "vision_model."),
    "a timm image tower alone": ("patch_embed.", "cls_token", "blocks.0."),
    "clipa_eqx itself": ("image/", "text/"),
    "the reference's JAX code or big_vision": ("params/", "img/", "txt/"),
}
"""Layouts of other programs, by how a name starts."""

_ADVICE = {
    "Hugging Face transformers (CLIPModel)": "give the open_clip files of the same model; hub repositories often hold "
    "both (open_clip_model.safetensors, or open_clip_pytorch_model.bin, next to open_clip_config.json)",
    "a timm image tower alone": "a model has an image and a text tower; give the file of both",
    "clipa_eqx itself": "it needs no import: load the model folder that the file belongs to",
    "the reference's JAX code or big_vision": "save it as .npz and use `python -m conversion.flax_clipa import`",
}

_INNER = {
    "an open_clip model with a timm image tower (SigLIP, EVA and others)": "visual.trunk.",
    "an EVA-CLIP model": "visual.blocks.",
    "an open_clip model with a Hugging Face text tower": "text.transformer.encoder.",
    "an open_clip ResNet": "visual.layer1.",
    "an open_clip ConvNeXt": "visual.stages.",
}
"""Models of open_clip's program, or named like them, whose towers are not those of CLIPA."""


def short_name(name: str) -> str:
    """The name of the rule table: without the parts of wrappers, and without the prefix ``text.``.

    >>> short_name("module._orig_mod.text.transformer._orig_mod.resblocks.0.ln_1.bias")
    'transformer.resblocks.0.ln_1.bias'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS).removeprefix("text.")


def check_layout(names: Iterable[str], *, where: Path | str) -> None:
    """Refuse a file whose names are not those of an open_clip CLIP model.

    Raises:
        ConversionError: one message that names the layout if it is known, before any list of names.
    """
    found = list(names)
    plain = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in found]
    for what, prefix in _INNER.items():
        if any(name.startswith(prefix) for name in plain):
            raise ConversionError(
                f"{where} is {what}: it has names such as {_first(plain, prefix)}. Only models whose image tower is a "
                "plain ViT and whose text tower is a plain transformer can be imported, as CLIPA's are"
            )
    if not found or any(_is_known(short_name(name)) for name in found):
        return
    head = f"{where} has {counted(len(found), 'tensor')}, and none of the names is one of open_clip's"
    for what, prefixes in _LAYOUTS.items():
        if shown := [_first(plain, prefix) for prefix in prefixes if any(name.startswith(prefix) for name in plain)]:
            raise ConversionError(f"{head}: it is the layout of {what} ({', '.join(shown)}, ...); {_ADVICE[what]}")
    raise ConversionError(
        f"{head}: it has {', '.join(sorted(found)[:3])}, expected names such as visual.conv1.weight and "
        "transformer.resblocks.0.ln_1.weight; give the weights of a CLIP model that open_clip saved"
    )


def _is_known(name: str) -> bool:
    return name in _NAMES or name.startswith(_PREFIXES)


def _first(names: Iterable[str], prefix: str) -> str:
    return min(name for name in names if name.startswith(prefix))
