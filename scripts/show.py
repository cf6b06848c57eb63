"""Show a run, a saved model, a work folder or data: `python scripts/show.py CONFIG.py|MODEL|WORKDIR|DATA_DIR`."""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipa_eqx.cli import run
from clipa_eqx.errors import ConfigError, DataError

EPILOG = """Prints the resolved config as JSON and a table of all parameters: shape, number of values and, with --mesh,
how each is split over the devices. For a work folder also the saved steps and the last metrics. For a data folder
its manifest, and a sheet is drawn: its first samples as a model sees them, here random crops of 112 px with color
jitter, with captions and 32 tokens. It is NAME-sheet.png in the working folder, after the name of the data folder, or
what --sheet names; a file of that name is replaced. Damaged records are named, and others drawn instead.
With --sheet a config gets a sheet instead, of the samples of its run.
After a config file come overrides, as for train.py: --optim.peak-lr 4e-4.
Exit codes: 0 done, 2 a mistake in what is shown, 1 anything else."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("target", metavar="CONFIG.py|MODEL|WORKDIR|DATA_DIR")
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE.png",
        help="draw here, replacing the file; default for data: NAME-sheet.png in the working folder",
    )
    parser.add_argument("--samples", type=int, default=24, help="number of samples on the sheet (default: 24)")
    parser.add_argument("--mesh", metavar="64x8x1", help="sizes of the axes data, fsdp and tensor; needs no devices")
    arguments, overrides = parser.parse_known_args(argv)
    target = Path(arguments.target)
    if overrides and target.suffix != ".py":
        raise ConfigError(f"unknown arguments {' '.join(overrides)}; only a config file takes overrides")
    mesh_sizes = None if arguments.mesh is None else _mesh_sizes(arguments.mesh)
    # Nothing here computes on a device, and on a TPU host a training run may hold them.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sheet: Path | None = arguments.sheet
    if target.suffix == ".py":
        if sheet is None:
            _show_config(target, overrides, mesh_sizes)
        else:
            _draw_config(target, overrides, sheet, samples=arguments.samples)
    elif (target / "model.safetensors").exists():
        _refuse(sheet)
        _show_model(target, mesh_sizes)
    elif (target / "config.json").exists():
        _refuse(sheet)
        _show_run(target, mesh_sizes)
    elif (target / "manifest.json").exists():
        _show_data(target)
        _draw_data(target, sheet, samples=arguments.samples)
    else:
        raise ConfigError(
            f"{target} is nothing to show; give a Python config file, or a folder with model.safetensors (saved "
            "model), config.json (work folder) or manifest.json (data)"
        )


def _show_config(path: Path, overrides: Sequence[str], mesh_sizes: tuple[int, ...] | None) -> None:
    from clipa_eqx.config_files import apply_overrides, load_config
    from clipa_eqx.json_config import to_json

    config = apply_overrides(load_config(path), overrides, program=f"show.py {path}")
    _print_json(to_json(config))
    _print_parameters(config.model, mesh_sizes)


def _show_model(folder: Path, mesh_sizes: tuple[int, ...] | None) -> None:
    from clipa_eqx.json_config import to_json
    from clipa_eqx.saved.model import load_model_config

    config = load_model_config(folder)
    _print_json(to_json(config))
    for name in ("preprocess.json", "provenance.json"):
        print(
            f"{name}: {(folder / name).read_text(encoding='utf-8').strip() if (folder / name).exists() else 'missing'}"
        )
    _print_parameters(config, mesh_sizes)


def _show_run(folder: Path, mesh_sizes: tuple[int, ...] | None) -> None:
    from clipa_eqx.experiment import ExperimentConfig
    from clipa_eqx.json_config import from_json
    from clipa_eqx.training.metrics import read_metrics
    from clipa_eqx.training.run_folder import CHECKPOINTS_NAME, METRICS_NAME, MODEL_NAME, read_record

    record = read_record(folder)
    config = from_json(ExperimentConfig, record["config"], where=str(folder / "config.json"))
    _print_json(record["config"])
    _print_parameters(config.model, mesh_sizes)
    # Orbax renames a step's folder to its number once it is committed.
    entries = (folder / CHECKPOINTS_NAME).iterdir() if (folder / CHECKPOINTS_NAME).is_dir() else ()
    steps = sorted(int(entry.name) for entry in entries if entry.name.isdigit())
    print(f"\nsaved steps: {', '.join(map(str, steps)) or 'none yet'}")
    print(f"latest checkpoint: {steps[-1] if steps else 'none yet'}")
    lines = read_metrics(folder / METRICS_NAME) if (folder / METRICS_NAME).exists() else []
    print(f"last metrics: {'(those per block are in ' + METRICS_NAME + ')' if lines else 'none yet'}")
    for name, value in (lines[-1] if lines else {}).items():
        if name != "time" and not isinstance(value, list):
            print(f"  {name}: {value:,.6g}" if isinstance(value, float) else f"  {name}: {value}")
    print(f"model: {folder / MODEL_NAME if (folder / MODEL_NAME).exists() else 'not written yet'}")


def _show_data(folder: Path) -> None:
    from clipa_eqx.data.manifest import read_manifest

    manifest = read_manifest(folder)
    print(f"shards: {len(manifest.shards)}, {sum(shard.bytes for shard in manifest.shards):,} bytes")
    print(f"rows: {manifest.rows_read:,} read, {manifest.rows_written:,} written")
    for reason, count in manifest.rows_dropped.items():
        print(f"dropped: {count:,} {reason}")
    names = manifest.class_names
    print("class names: none" if not names else f"class names: {len(names)}, from {names[0]!r} to {names[-1]!r}")
    for name, value in manifest.info.items():
        print(f"{name}: {value}")


def _draw_data(folder: Path, sheet: Path | None, *, samples: int) -> None:
    """Without a name for the sheet, what stands in its way is only said: the manifest was asked for, and is shown."""
    try:
        if sheet is None and Path.cwd() == folder.resolve():
            raise DataError("it would lie among the records; name a file with --sheet")
        _draw_records(folder, sheet or Path(f"{folder.resolve().name}-sheet.png"), samples=samples)
    except DataError as error:
        if sheet is not None:
            raise
        print(f"no sheet is drawn: {error}")


def _draw_records(folder: Path, path: Path, *, samples: int) -> None:
    from clipa_eqx.data.array_record_reader import open_records
    from clipa_eqx.data.images.augment import ImageConfig
    from clipa_eqx.data.images.color import ColorConfig
    from clipa_eqx.data.mixture import Mixture
    from clipa_eqx.data.transforms import TrainTransform
    from clipa_eqx.tokenizer import Tokenizer
    from scripts.contact_sheet import write_sheet

    source = open_records(folder)
    if not len(source):
        raise DataError("there are no records")
    image = ImageConfig(size=(112, 112), color=ColorConfig())
    transform = TrainTransform(image=image, tokenizer=Tokenizer.bert(), length=32)
    mixture = Mixture(sources=(source,))
    write_sheet(path, mixture, transform, samples=samples, seed=0, on_bad_record="substitute")
    print(f"{samples} samples drawn to {path}")


def _draw_config(config_path: Path, overrides: Sequence[str], path: Path, *, samples: int) -> None:
    from clipa_eqx.config_files import apply_overrides, load_config
    from clipa_eqx.training.inputs import load_tokenizer, open_sources, train_transform
    from scripts.contact_sheet import write_sheet

    config = apply_overrides(load_config(config_path), overrides, program=f"show.py {config_path}")
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    mixture, transform = open_sources(config), train_transform(config, tokenizer)
    bad = config.data.on_bad_record
    write_sheet(path, mixture, transform, samples=samples, seed=config.seed, on_bad_record=bad)
    print(f"{samples} samples drawn to {path}")


def _print_parameters(config: Any, mesh_sizes: tuple[int, ...] | None) -> None:

    from clipa_eqx.models.clip import abstract_clip
    from clipa_eqx.trees import count_params, leaves_by_path

    model = abstract_clip(config)
    specs = {} if mesh_sizes is None else _specs(model, mesh_sizes)
    rows = [("path", "shape", "values", *(("split",) if specs else ()))]
    for path, leaf in leaves_by_path(model).items():
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        rows.append((path, shape, f"{math.prod(leaf.shape):,}", *((specs[path],) if specs else ())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for path, shape, values, *split in rows:
        print("  ".join([path.ljust(widths[0]), shape.ljust(widths[1]), values.rjust(widths[2]), *split]))
    print()
    for name, part in (("image", model.image), ("text", model.text), ("all", model)):
        print(f"parameters, {name}: {count_params(part):,}")


def _specs(model: Any, sizes: tuple[int, ...]) -> dict[str, str]:
    from jax.sharding import AbstractMesh

    from clipa_eqx.sharding import AXES, MeshConfig, describe_shardings

    MeshConfig(**dict(zip(AXES, sizes, strict=True)))  # raises on sizes that do not work
    found = describe_shardings(model, AbstractMesh(sizes, AXES))
    return {path: ", ".join(str(axis or "-") for axis in spec) or "whole" for path, spec in found.items()}


def _mesh_sizes(text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise ConfigError(f"--mesh is {text!r}; give the sizes of data, fsdp and tensor, such as 64x8x1")
    return tuple(map(int, parts))


def _refuse(sheet: Path | None) -> None:
    if sheet is not None:
        raise ConfigError("--sheet draws samples of a data folder or of a config file; give one of these")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


if __name__ == "__main__":
    sys.exit(run(main))
