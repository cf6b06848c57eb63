"""Checkpoints of the reference's t5x branch: `python -m conversion.t5x import CHECKPOINT_DIR DIR`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipa_eqx.cli import run
from clipa_eqx.errors import ConversionError
from conversion.arguments import EPILOG, add_import_arguments

if TYPE_CHECKING:
    from conversion.t5x_files import T5xFolder
    from conversion.tensors import TensorFile
    from conversion.to_artefact import Moments

FORMAT = "t5x checkpoint"
TARGET = "optimizer/target/"
MU, NU = "optimizer/state/param_states/0/mu/", "optimizer/state/param_states/0/nu/"
ADAM_COUNT, SCHEDULE_COUNT = "optimizer/state/param_states/0/count", "optimizer/state/param_states/2/count"
STEP = "optimizer/state/step"

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m conversion.t5x", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    importer = commands.add_parser(
        "import",
        help="a checkpoint_STEP folder to a model folder, with the optimiser state",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    importer.add_argument("source", metavar="CHECKPOINT_DIR", type=Path)
    add_import_arguments(importer)
    importer.add_argument("--no-optimiser", action="store_true", help="take the parameters alone")
    arguments = parser.parse_args(argv)
    # Nothing here needs an accelerator, and on a TPU host a training run may hold them.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import_t5x(arguments)


def import_t5x(arguments: argparse.Namespace) -> None:
    """Convert one folder.

    Raises:
        ConversionError: lists what is missing, unused, mis-shaped, damaged, or cannot be told from shapes.
        CheckpointError: the destination exists.
    """
    from conversion.arguments import choices_of, config_provenance, show_resolved, tokenizer_of
    from conversion.flax_names import flax_rules
    from conversion.flax_shapes import flax_facts, layout_of
    from conversion.infer import resolve_config
    from conversion.t5x_files import T5xFolder
    from conversion.to_artefact import write_artefact

    with T5xFolder(arguments.source) as source:
        params, moments = split_checkpoint(source)
        layout = layout_of(params.tensors)
        resolved = resolve_config(flax_facts(params.tensors), choices_of(arguments), format_profile="flax")
        show_resolved(resolved)
        about: dict[str, Any] = {"attention": layout.attention, "temperature": list(layout.temperature)}
        converted = write_artefact(
            params,
            flax_rules(resolved.config, layout),
            resolved.config,
            arguments.folder,
            tokenizer=tokenizer_of(arguments.vocab, rows=resolved.config.text.vocab),
            preprocess=resolved.preprocess,
            provenance={"format": FORMAT, "layout": about, **config_provenance(resolved)},
            moments=None if arguments.no_optimiser else moments,
            overwrite=arguments.overwrite,
        )
    _log.info("%s: %s parameters", converted.folder, f"{converted.provenance['parameters']:,}")


def split_checkpoint(source: "T5xFolder") -> "tuple[TensorFile, Moments | None]":
    """Parameters and optimiser state of a checkpoint, under the names of the parameters.

    Raises:
        ConversionError: lists what is there besides, and what of an optimiser state is missing.
    """
    from conversion.tensors import TensorView
    from conversion.to_artefact import Moments

    trees = {prefix: _under(source, prefix) for prefix in (TARGET, MU, NU)}
    counts = [name for name in (ADAM_COUNT, SCHEDULE_COUNT, STEP) if name in source.tensors]
    known = {*counts, *(name for tree in trees.values() for name in tree.values())}
    problems = [f"unused: {name} {info.shape}" for name, info in source.tensors.items() if name not in known]
    params = set(trees[TARGET])
    if not params:
        problems.append(f"there is nothing under {TARGET}")
    has_state = bool(trees[MU] or trees[NU] or ADAM_COUNT in counts)
    if has_state:
        for prefix in (MU, NU):
            problems += [f"unused: {prefix}{name}, no parameter's" for name in sorted(set(trees[prefix]) - params)]
        problems += [f"missing: {NU}{name}" for name in sorted(set(trees[MU]) - set(trees[NU]))]
        problems += [f"missing: {MU}{name}" for name in sorted(set(trees[NU]) - set(trees[MU]))]
        problems += [f"missing: {name}" for name in (ADAM_COUNT, SCHEDULE_COUNT, STEP) if name not in counts]
    numbers = {name: _count(source, name, problems) for name in counts}
    # A new stage sets both to zero; Adam's count alone goes on (facts 3.2).
    if len(numbers) == 3 and numbers[STEP] != numbers[SCHEDULE_COUNT]:
        problems.append(f"{STEP} is {numbers[STEP]}, {SCHEDULE_COUNT} {numbers[SCHEDULE_COUNT]}; expected the same")
    if problems:
        raise ConversionError(
            f"{source.path}: the checkpoint is not of the reference's t5x trainer, {len(problems)} problem(s):\n  "
            + "\n  ".join(problems)
        )
    view = TensorView(source, trees[TARGET])
    if not has_state:
        return view, None
    return view, Moments(
        mu=TensorView(source, trees[MU]),
        nu=TensorView(source, trees[NU]),
        updates=numbers[ADAM_COUNT],
        schedule_steps=numbers[SCHEDULE_COUNT],
        absent=tuple(sorted(params - set(trees[MU]))),
        about={"step": numbers[STEP]},
    )


def _under(source: "T5xFolder", prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): name for name in source.tensors if name.startswith(prefix)}


def _count(source: "T5xFolder", name: str, problems: list[str]) -> int:
    info = source.tensors[name]
    value = source.read(name).item() if info.shape == () and info.dtype.kind in "iu" else None
    if value is None or not 0 <= value < 1 << 31:
        problems.append(f"{name} is {info.dtype}{list(info.shape)} {value}, expected a count")
        return 0
    return int(value)


if __name__ == "__main__":
    sys.exit(run(main))
