"""A model as a folder: weights, tokenizer, how pictures are prepared, and where it all comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image, resize_for_eval
from clipa_eqx.data.images.host_pixels import normalize_on_host
from clipa_eqx.errors import CheckpointError, ClipaError, DataError, listed
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.replacing import check_replaceable, new_folder
from clipa_eqx.saved.description import (
    MODEL_FOLDER,
    PROVENANCE_FILE,
    TOKENIZER_FOLDER,
    WEIGHTS_FILE,
    check_parts,
    load_model_config,
    load_preprocess,
    read_json,
    write_description,
)
from clipa_eqx.saved.leaf_file import Leaf
from clipa_eqx.saved.leaf_shapes import leaf_problems
from clipa_eqx.tokenizer import Tokenizer, Tokens
from clipa_eqx.tokenizer.reduce import Reduction
from clipa_eqx.trees import from_leaves, leaves_by_path

__all__ = [
    "WEIGHTS_FILE",
    "LoadedModel",
    "ModelTokenizer",
    "Preprocess",
    "load_model",
    "load_model_config",
    "save_model",
]


@dataclass(frozen=True, kw_only=True)
class ModelTokenizer:
    """A tokenizer that knows how long its model's texts are.

    >>> tokens = ModelTokenizer(tokenizer=Tokenizer.bert(), length=6)(["a photo of a dog"])
    >>> tokens.ids, tokens.truncated
    (array([[ 101, 1037, 6302, 1997, 1037, 3899]], dtype=int32), 0)
    """

    tokenizer: Tokenizer
    length: int

    def __call__(self, texts: Sequence[str | bytes], *, reduction: Reduction = "truncate") -> Tokens:
        """Rows of ids and how many texts were cut. Raises as ``Tokenizer``; reductions that draw need that one."""
        return self.tokenizer(texts, length=self.length, reduction=reduction)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Pictures to what the image tower takes."""

    config: EvalImageConfig

    def __call__(
        self, images: Sequence[bytes | Image.Image | np.ndarray]
    ) -> Float32[np.ndarray, "batch height width 3"]:
        """Normalized pixels of encoded files, Pillow pictures or RGB arrays, for ``jax.vmap(model.encode_image)``.

        Mode "fast" holds for encoded files; what is already decoded is resized exactly.

        Raises:
            DataError: not a list, or one entry is no whole picture; the message says which.
        """
        if not isinstance(images, list | tuple):
            raise DataError(f"preprocess takes a list of pictures, got {type(images).__name__}; put it in a list")
        batch = np.zeros((len(images), *self.config.size, 3), np.float32)
        for i, image in enumerate(images):
            try:
                batch[i] = normalize_on_host(self._pixels(image))
            except DataError as error:
                raise DataError(f"picture {i} of {len(images)}: {error}") from error
        return batch

    def _pixels(self, image: Any) -> UInt8[np.ndarray, "height width 3"]:
        if isinstance(image, bytes):
            return eval_image(image, self.config)
        if isinstance(image, Image.Image):
            if image.mode.startswith("I"):
                raise DataError(f"a Pillow picture of mode {image.mode} has no 8-bit levels; pass the file's bytes")
            return resize_for_eval(np.array(image.convert("RGB")), self.config)
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            return resize_for_eval(image, self.config)
        what = f"{image.dtype}{image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"got {what}, expected bytes, a Pillow picture or uint8[height width 3]")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """All that ``save_model`` wrote."""

    model: CLIP
    tokenizer: ModelTokenizer
    preprocess: Preprocess
    provenance: Mapping[str, Any]


def save_model(
    folder: Path | str,
    model: CLIP,
    *,
    tokenizer: Tokenizer,
    preprocess: EvalImageConfig,
    provenance: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write a model's folder; it appears once it is complete, and so does the one that replaces another.

    Args:
        provenance: JSON: where the weights come from, for example source file, hashes, steps.
        overwrite: replace a saved model of the same name; a folder that holds anything else is never replaced.

    Raises:
        CheckpointError: the folder exists, or the model has leaves that are not finite or not what its config says.
        ConfigError: ``preprocess`` or ``tokenizer`` do not fit the model.
    """
    folder = Path(folder)
    check_parts(model.config, tokenizer, preprocess)
    check_replaceable(folder, MODEL_FOLDER, overwrite=overwrite)
    weights = {
        path: np.asarray(jax.device_get(leaf), dtype=np.float32, order="C")
        for path, leaf in leaves_by_path(model).items()
    }
    _check_leaves(weights, model.config, where=f"the model to be saved as {folder}")
    with new_folder(folder, MODEL_FOLDER, overwrite=overwrite) as new:
        save_file(weights, new / WEIGHTS_FILE)
        write_description(new, model.config, tokenizer=tokenizer, preprocess=preprocess, provenance=provenance)
    return folder


def load_model(folder: Path | str) -> LoadedModel:
    """Read what ``save_model`` wrote.

    >>> clip = load_model("runs/h14/model")  # doctest: +SKIP
    >>> images = jax.vmap(clip.model.encode_image)(clip.preprocess([Image.open("cat.jpg")]))  # doctest: +SKIP
    >>> texts = jax.vmap(clip.model.encode_text)(clip.tokenizer(["a cat", "a dog"]).ids)  # doctest: +SKIP

    Raises:
        CheckpointError: files are missing or damaged, of a later version, or do not fit each other; all missing,
            unused, mis-shaped and non-finite leaves are listed at once.
    """
    folder = Path(folder)
    config = load_model_config(folder)
    weights = _read_weights(folder / WEIGHTS_FILE, config)
    preprocess = load_preprocess(folder)
    try:
        tokenizer = Tokenizer.load(folder / TOKENIZER_FOLDER)
        skeleton = abstract_clip(config)
        model = from_leaves(skeleton, {path: jnp.asarray(array) for path, array in weights.items()})
        check_parts(config, tokenizer, preprocess)
    except ClipaError as error:
        raise CheckpointError(f"model folder {folder}: {error}") from error
    return LoadedModel(
        model=model,
        tokenizer=ModelTokenizer(tokenizer=tokenizer, length=config.text.length),
        preprocess=Preprocess(config=preprocess),
        provenance=read_json(folder / PROVENANCE_FILE),
    )


def _read_weights(path: Path, config: CLIPConfig) -> dict[str, np.ndarray]:
    weights: dict[str, np.ndarray] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            kinds = {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
            other = {name: kind for name, kind in kinds.items() if kind != "F32"}
            if other:
                raise CheckpointError(f"{path} holds {other}, expected F32 only; save it with save_model")
            weights = {name: file.get_tensor(name) for name in kinds}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore the file or save the model again") from error
    _check_leaves(weights, config, where=str(path))
    return weights


def _check_leaves(weights: Mapping[str, np.ndarray], config: CLIPConfig, *, where: str) -> None:
    problems = leaf_problems({path: Leaf(array.shape, array.dtype) for path, array in weights.items()}, config)
    problems += [f"not finite: {path}" for path, array in weights.items() if not np.isfinite(array).all()]
    if problems:
        raise CheckpointError(f"{where} does not fit its config, {listed(problems)}")
