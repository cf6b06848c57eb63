"""Small checkpoints in the official layout for tests, and their conversion."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from clipa_eqx.json_config import to_json
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.tokenizer.vocabulary import write_vocab
from conversion.flax_clipa.__main__ import main
from conversion.flax_clipa.names import to_flax
from support.tiny_models import PIECES, tiny_clip_config


def random_clip(config: CLIPConfig, seed: int = 0) -> CLIP:
    """A model in which no leaf is constant."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(0.1 + 0.3 * rng.standard_normal(x.shape), jnp.float32), abstract_clip(config)
    )


@functools.cache
def tiny_arrays() -> dict[str, np.ndarray]:
    """The parameters of a tiny model under their official names."""
    return {f"params/{name}": array for name, array in to_flax(random_clip(tiny_clip_config())).items()}


def training_arrays(*, mu_dtype=np.float32, schedule_entries=(4,), step=7) -> dict[str, np.ndarray]:
    """A full training checkpoint."""
    arrays = tiny_arrays()
    bare = {name.removeprefix("params/"): array for name, array in arrays.items()}
    return {
        "chrono/accum_examples_seen": np.asarray(step * 8),
        "chrono/accum_train_time": np.asarray(12.5),
        "opt/1/0/0": np.asarray(step, np.int32),
        **{f"opt/1/0/1/{name}": (0.1 * array).astype(mu_dtype) for name, array in bare.items()},
        **{f"opt/1/0/2/{name}": array**2 for name, array in bare.items()},
        **{f"opt/{entry}/0/0": np.asarray(step, np.int32) for entry in schedule_entries},
        **arrays,
    }


def write_npz(path: Path, arrays: dict[str, np.ndarray], *, compressed: bool = False) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def convert(source: Path | str, folder: Path, *flags: str, config: CLIPConfig | None = None) -> Path:
    """Import by the command line with the tiny vocabulary, by default as ``tiny_clip_config``."""
    vocab, described = folder.parent / "vocab.txt", folder.parent / "config.json"
    write_vocab(PIECES, vocab)
    described.write_text(json.dumps(to_json(tiny_clip_config() if config is None else config)))
    named = ("--config", str(described)) if not any(f in flags for f in ("--preset", "--image-pool")) else ()
    main(["import", str(source), str(folder), "--vocab", str(vocab), *named, *flags])
    return folder


def assert_same_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """The file holds exactly these arrays, bit for bit, in the reference's order."""
    with np.load(file) as found:
        assert found.files == list(dict(sorted(arrays.items(), key=lambda item: item[0].split("/"))))
        for name, array in arrays.items():
            expected = array.view("V2") if array.dtype == ml_dtypes.bfloat16 else array
            assert (found[name].shape, found[name].dtype, found[name].tobytes()) == (
                expected.shape,
                expected.dtype,
                expected.tobytes(),
            ), name
