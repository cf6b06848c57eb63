"""Save and load a model with its tokenizer, its image preparation and its provenance as one folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open

from clipa_eqx.buckets.mirror import named
from clipa_eqx.cache_folder import cache_folder
from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image, resize_for_eval
from clipa_eqx.data.images.host_pixels import normalize_on_host
from clipa_eqx.errors import CheckpointError, ClipaError, DataError, listed
from clipa_eqx.evals.prompts import PromptReduction, prompt_reduction
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.replacing import check_replaceable, new_folder
from clipa_eqx.saved.by_name import is_name, local_model
from clipa_eqx.saved.description import MODEL_FOLDER, check_parts, write_description
from clipa_eqx.saved.encoding import ImageLike, encode_image_list, encode_text_list
from clipa_eqx.saved.kinds import WEIGHTS_FILE
from clipa_eqx.saved.leaf_file import Leaf, LeafWriter
from clipa_eqx.saved.leaf_hashes import array_hashes, check_hashes, recorded_hashes
from clipa_eqx.saved.leaf_shapes import leaf_problems
from clipa_eqx.saved.model_folder import open_model_folder
from clipa_eqx.saved.provenance import Provenance
from clipa_eqx.sharding import shardings_for
from clipa_eqx.tokenizer.reduce import Reduction
from clipa_eqx.tokenizer.wordpiece import Tokenizer, Tokens
from clipa_eqx.trees import from_leaves, leaves_by_path


@dataclass(frozen=True, kw_only=True)
class ModelTokenizer:
    """A tokenizer with the text length of its model.

    Attributes:
        tokenizer: tokenizer of any length.
        length: tokens per text, ``[CLS]`` and padding included.

    Examples:
        >>> tokens = ModelTokenizer(tokenizer=Tokenizer.bert(), length=6)(["a photo of a dog"])
        >>> tokens.ids, tokens.truncated
        (array([[ 101, 1037, 6302, 1997, 1037, 3899]], dtype=int32), 0)
    """

    tokenizer: Tokenizer
    length: int

    def __call__(self, texts: Sequence[str | bytes], *, reduction: Reduction = "truncate") -> Tokens:
        """Tokenize texts to rows of ``length`` ids, and count the texts that were cut.

        Args:
            texts: captions or prompts; bytes are decoded as UTF-8.
            reduction: way to shorten a text of too many pieces: "truncate" keeps the first pieces, "syntax" the words
                of the most important classes. "random" and "block" need ``tokenizer`` itself, which takes a generator.

        Raises:
            ConfigError: the reduction is "random" or "block".
            DataError: one string instead of a sequence of texts.
        """
        return self.tokenizer(texts, length=self.length, reduction=reduction)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Image preparation: from files or arrays to the input of the image tower.

    Attributes:
        config: size in pixels, and how images are resized.
    """

    config: EvalImageConfig

    def __call__(
        self, images: Sequence[bytes | Image.Image | np.ndarray]
    ) -> Float32[np.ndarray, "batch height width 3"]:
        """Normalized pixels of encoded files, Pillow images or RGB arrays, for ``jax.vmap(model.encode_image)``.

        Mode "fast" applies to encoded files; decoded images are always resized exactly.

        Args:
            images: content of image files, Pillow images, or arrays uint8[height width 3], of any size.

        Raises:
            DataError: the argument is not a list, or an entry is not a complete image; the message says which.
        """
        if not isinstance(images, list | tuple):
            raise DataError(f"preprocess takes a list of images, got {type(images).__name__}; put it in a list")
        batch = np.zeros((len(images), *self.config.size, 3), np.float32)
        for i, image in enumerate(images):
            try:
                batch[i] = normalize_on_host(self.pixels(image))
            except DataError as error:
                raise DataError(f"image {i} of {len(images)}: {error}") from error
        return batch

    def pixels(self, image: bytes | Image.Image | np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
        """Pixels of one image at the size of the model, before normalization.

        Raises:
            DataError: not a complete image, or not of a type that a call takes.
        """
        given: Any = image
        if isinstance(given, bytes):
            return eval_image(given, self.config)
        if isinstance(given, Image.Image):
            if given.mode.startswith("I"):
                raise DataError(f"a Pillow image of mode {given.mode} has no 8-bit levels; pass the file's bytes")
            return resize_for_eval(np.array(given.convert("RGB")), self.config)
        if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.ndim == 3 and given.shape[2] == 3:
            return resize_for_eval(given, self.config)
        what = f"{given.dtype}{given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
        raise DataError(f"got {what}, expected bytes, a Pillow image or uint8[height width 3]")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """The content of a model folder, and embeddings of images and texts.

    Attributes:
        model: both towers and the temperature, in float32.
        tokenizer: texts to rows of token ids of the text tower's length.
        preprocess: images to normalized pixels of the image tower's size.
        provenance: where the weights come from.
    """

    model: CLIP
    tokenizer: ModelTokenizer
    preprocess: Preprocess
    provenance: Provenance

    def encode_images(
        self,
        images: Sequence[ImageLike] | UInt8[np.ndarray, "images height width 3"],
        *,
        batch_size: int = 64,
    ) -> Float32[np.ndarray, "images embed"]:
        """Unit embeddings of images, prepared as for scoring; one row per image, in order. Shows progress after 2 s.

        Args:
            images: paths, contents of files, Pillow images or RGB arrays uint8[height width 3], mixed and of any size;
                or one array uint8[images height width 3].
            batch_size: most images at once over all devices. Each power of two up to it is compiled once.

        Examples:
            >>> clip = load_model("runs/first/model")  # doctest: +SKIP
            >>> similarity = clip.encode_images(["cat.jpg"]) @ clip.encode_texts(["a cat", "a dog"]).T  # doctest: +SKIP

        Raises:
            ConfigError: ``batch_size`` below 1.
            DataError: the argument is no list of images, or an image cannot be read; the message names it.
        """
        return encode_image_list(self.model, images, prepare=self.preprocess.pixels, batch_size=batch_size)

    def encode_texts(
        self,
        texts: Sequence[str | bytes],
        *,
        reduction: PromptReduction | None = None,
        batch_size: int = 256,
    ) -> Float32[np.ndarray, "texts embed"]:
        """Unit embeddings of texts, tokenized as for scoring; one row per text, in order. Shows progress after 2 s.

        Args:
            texts: captions or prompts; bytes are decoded as UTF-8.
            reduction: how texts longer than the text tower are cut, "truncate" or "syntax"; None is as in training.
            batch_size: most texts at once over all devices. Each power of two up to it is compiled once.

        Raises:
            ConfigError: ``batch_size`` below 1.
            DataError: the argument is no list of texts; the message names the first entry that is no text.
        """
        cut = reduction or prompt_reduction(self.provenance.text_reduction)
        return encode_text_list(
            self.model, texts, tokenize=lambda rows: self.tokenizer(rows, reduction=cut).ids, batch_size=batch_size
        )

    def on_mesh(self, mesh: Mesh) -> "LoadedModel":
        """The same model with its arrays placed on the devices of a mesh, which then share the work of encoding.

        Raises:
            ShardingError: a leaf that no rule places.
        """
        return replace(self, model=jax.device_put(self.model, shardings_for(self.model, mesh)))


def save_model(
    folder: Path | str,
    model: CLIP,
    *,
    tokenizer: Tokenizer,
    preprocess: EvalImageConfig,
    provenance: Provenance | Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write a model folder. It appears, or replaces the former one, once it is complete.

    Args:
        folder: the folder to write.
        model: the model; its leaves are saved as float32.
        tokenizer: tokenizer of its texts.
        preprocess: how its evaluation images are prepared.
        provenance: where the weights come from, for example source file, steps; a mapping is read as JSON. SHA-256 of
            the leaves are added to it.
        overwrite: replace a model folder of the same name; a folder that holds anything else is never replaced.

    Raises:
        CheckpointError: the folder exists, or leaves of the model are not finite or do not fit its config.
        ConfigError: ``preprocess`` or ``tokenizer`` do not fit the model.
    """
    folder = Path(folder)
    if not isinstance(provenance, Provenance):
        provenance = Provenance.from_json(provenance)
    check_parts(model.config, tokenizer, preprocess)
    check_replaceable(folder, MODEL_FOLDER, overwrite=overwrite)
    weights = {
        path: np.asarray(jax.device_get(leaf), dtype=np.float32, order="C")
        for path, leaf in leaves_by_path(model).items()
    }
    _check_leaves(weights, model.config, where=f"the model to be saved as {folder}")
    with new_folder(folder, MODEL_FOLDER, overwrite=overwrite) as new:
        leaves = {path: Leaf(array.shape, array.dtype) for path, array in weights.items()}
        with LeafWriter(new / WEIGHTS_FILE, leaves) as file:
            for path, array in weights.items():
                file.write(path, array)
        provenance = replace(provenance, leaves_sha256=file.checksums)
        write_description(new, model.config, tokenizer=tokenizer, preprocess=preprocess, provenance=provenance)
    return folder


def load_model(folder: Path | str, *, weights: Path | str | None = None, verify: bool = True) -> LoadedModel:
    """Read a model folder, as ``save_model`` or an import wrote it, or a model by name.

    A model by name is converted to a folder in the cache the first time, and is read from there ever after; the cache
    is the folder that ``CLIPA_EQX_CACHE`` names, else ``clipa_eqx`` in ``XDG_CACHE_HOME`` or ``~/.cache``.

    Args:
        folder: the folder to read: a local path, ``gs://bucket/run/model`` or ``s3://bucket/run/model``; or
            ``hf-hub:OWNER/NAME``, an open_clip repository of the Hugging Face hub, with ``@REVISION`` for another
            revision than the newest at the time; or the name of a released model, as ``clipa-released`` lists them.
        weights: the downloaded file of the named released model.
        verify: compare SHA-256 of each leaf with that in ``provenance.json``, if it has one (folders of version 0.1.0
            that were trained have none). It takes about a second per 2 GB on 4 cores; False saves it.

    Examples:
        >>> clip = load_model("runs/h14/model")  # doctest: +SKIP
        >>> images = clip.encode_images(["cat.jpg", "dog.jpg"])  # doctest: +SKIP
        >>> texts = clip.encode_texts(["a cat", "a dog"])  # doctest: +SKIP
        >>> clip = load_model("h14-224px-t32-datacomp1b", weights="h14.npz")  # doctest: +SKIP

    Raises:
        ConfigError: no released model has this name, or its weights are not given.
        ConversionError: the weights of a named model cannot be downloaded, converted, or written to the cache.
        CheckpointError: ``folder`` is not a model folder; files are missing, damaged, of a later version, or do not fit
            each other; all missing, unused, mis-shaped and non-finite leaves are listed at once, then all leaves that
            were changed after they were written.
    """
    with named(folder):
        local = local_model(folder, weights=weights)
        try:
            return _load_model(local, verify=verify)
        except CheckpointError as error:
            if (weights is None and not is_name(folder)) or not local.is_relative_to(cache_folder()):
                raise
            raise CheckpointError(f"{error}; delete {local}, and {folder} is converted again") from error


def _load_model(folder: Path, *, verify: bool) -> LoadedModel:
    opened = open_model_folder(folder)
    config = opened.config
    weights = _read_weights(opened.weights, config)
    try:
        if verify:
            recorded = recorded_hashes(opened.provenance, of_optimizer=False)
            check_hashes(array_hashes(weights) if recorded is not None else {}, recorded, where=WEIGHTS_FILE)
        model = from_leaves(abstract_clip(config), {path: jnp.asarray(array) for path, array in weights.items()})
        check_parts(config, opened.tokenizer, opened.preprocess)
    except ClipaError as error:
        raise CheckpointError(f"model folder {folder}: {error}") from error
    return LoadedModel(
        model=model,
        tokenizer=ModelTokenizer(tokenizer=opened.tokenizer, length=config.text.length),
        preprocess=Preprocess(config=opened.preprocess),
        provenance=opened.provenance,
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
