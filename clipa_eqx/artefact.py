"""A model as a folder: weights, tokenizer, how pictures are prepared, and where it all comes from."""

import json
import os
import shutil
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

from clipa_eqx.data.eval_images import EvalImageConfig, eval_image, resize_for_eval
from clipa_eqx.data.pixel_values import IMAGENET_MEAN, IMAGENET_STD, normalise_imagenet
from clipa_eqx.errors import CheckpointError, ClipaError, ConfigError, DataError
from clipa_eqx.json_config import from_json, to_json
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.tokenizer import Tokenizer, Tokens
from clipa_eqx.tokenizer.reduce import Reduction
from clipa_eqx.trees import leaf_paths

CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FOLDER = "config.json", "model.safetensors", "tokenizer"
PREPROCESS_FILE, PROVENANCE_FILE = "preprocess.json", "provenance.json"

_SCHEMA = 1
_PIXELS = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}


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
        """Normalised pixels of encoded files, Pillow pictures or RGB arrays, for ``jax.vmap(model.encode_image)``.

        Mode "fast" holds for encoded files; what is already decoded is resized exactly.

        Raises:
            DataError: not a list, or one entry is no whole picture; the message says which.
        """
        if not isinstance(images, list | tuple):
            raise DataError(f"preprocess takes a list of pictures, got {type(images).__name__}; put it in a list")
        batch = np.zeros((len(images), *self.config.size, 3), np.float32)
        for i, image in enumerate(images):
            try:
                batch[i] = normalise_imagenet(self._pixels(image))
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
        overwrite: replace a saved model of the same name; a folder of anything else is never replaced.

    Raises:
        CheckpointError: the folder exists, or the model has leaves that are not finite or not what its config says.
        ConfigError: ``preprocess`` or ``tokenizer`` do not fit the model.
    """
    folder = Path(folder)
    _check_parts(model, tokenizer, preprocess)
    _check_replaceable(folder, overwrite=overwrite)
    weights = {
        path: np.asarray(jax.device_get(leaf), dtype=np.float32, order="C")
        for path, leaf in zip(leaf_paths(model), jax.tree.leaves(model), strict=True)
    }
    found = {path: (array.shape, bool(np.isfinite(array).all())) for path, array in weights.items()}
    _check_leaves(found, model.config, where=f"the model to be saved as {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        save_file(weights, new / WEIGHTS_FILE)
        tokenizer.save(new / TOKENIZER_FOLDER)
        _write_json(new / CONFIG_FILE, {"schema": _SCHEMA, "model": to_json(model.config)})
        _write_json(new / PREPROCESS_FILE, to_json(preprocess) | _PIXELS)
        _write_json(new / PROVENANCE_FILE, dict(provenance))
        _replace(folder, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)
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
    about = _read_json(folder / PREPROCESS_FILE)
    if {key: about.pop(key, None) for key in _PIXELS} != _PIXELS:
        raise CheckpointError(
            f"{folder / PREPROCESS_FILE} asks for another mean or std than ImageNet's, which this version cannot give"
        )
    try:
        preprocess = from_json(EvalImageConfig, about, where=str(folder / PREPROCESS_FILE))
        tokenizer = Tokenizer.load(folder / TOKENIZER_FOLDER)
        skeleton = abstract_clip(config)
        leaves = [jnp.asarray(weights[path]) for path in leaf_paths(skeleton)]
        model = jax.tree.unflatten(jax.tree.structure(skeleton), leaves)
        _check_parts(model, tokenizer, preprocess)
    except ClipaError as error:
        raise CheckpointError(f"model folder {folder}: {error}") from error
    return LoadedModel(
        model=model,
        tokenizer=ModelTokenizer(tokenizer=tokenizer, length=config.text.length),
        preprocess=Preprocess(config=preprocess),
        provenance=_read_json(folder / PROVENANCE_FILE),
    )


def load_model_config(folder: Path | str) -> CLIPConfig:
    """The architecture of a saved model, without its weights.

    Raises:
        CheckpointError: no such folder, no saved model in it, or one of a later version.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.parent.is_dir():
        raise CheckpointError(f"there is no model folder {folder}; give a folder that save_model wrote")
    found = _read_json(path)
    if found.get("schema") != _SCHEMA or not isinstance(found.get("model"), dict):
        raise CheckpointError(
            f"{path} has schema {found.get('schema')!r}, this version of clipa_eqx reads {_SCHEMA}; "
            "use the version that wrote it, or a folder that save_model wrote"
        )
    try:
        return from_json(CLIPConfig, found["model"], where=str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _check_parts(model: CLIP, tokenizer: Tokenizer, preprocess: EvalImageConfig) -> None:
    if preprocess.size != model.config.image.image_size:
        raise ConfigError(f"preprocess.size is {preprocess.size}, the model's images {model.config.image.image_size}")
    if tokenizer.vocab_size > model.config.text.vocab:
        raise ConfigError(f"the tokenizer has {tokenizer.vocab_size} pieces, the model {model.config.text.vocab} rows")


def _check_replaceable(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"{folder} exists already; give another name, or overwrite it (overwrite=True)")
    if not (folder / WEIGHTS_FILE).is_file() or not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder} exists and is no saved model, so it is not overwritten; give another name")


def _replace(folder: Path, new: Path) -> None:
    """Rename ``new`` to ``folder``; what was there stays until then, and comes back if renaming fails."""
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


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
    found = {name: (array.shape, bool(np.isfinite(array).all())) for name, array in weights.items()}
    _check_leaves(found, config, where=str(path))
    return weights


def _check_leaves(found: Mapping[str, tuple[tuple[int, ...], bool]], config: CLIPConfig, *, where: str) -> None:
    skeleton = abstract_clip(config)
    wanted = {p: tuple(leaf.shape) for p, leaf in zip(leaf_paths(skeleton), jax.tree.leaves(skeleton), strict=True)}
    problems = [f"missing: {path} {shape}" for path, shape in wanted.items() if path not in found]
    problems += [f"unused: {path} {shape}" for path, (shape, _) in sorted(found.items()) if path not in wanted]
    for path, (shape, is_finite) in found.items():
        if path in wanted and shape != wanted[path]:
            problems.append(f"shape: {path} is {shape}, expected {wanted[path]}")
        if not is_finite:
            problems.append(f"not finite: {path}")
    if problems:
        raise CheckpointError(
            f"{where} does not fit its config, {len(problems)} problem(s):\n  " + "\n  ".join(problems)
        )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); it is part of every saved model") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds {type(found).__name__}, expected an object; save the model again")
    return found
