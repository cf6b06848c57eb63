"""Checkpoints of the reference's t5x branch: `python -m conversion.t5x import CHECKPOINT_DIR DIR`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipa_eqx.cli import exit_on_sigterm, run
from clipa_eqx.errors import ConversionError, listed
from conversion.arguments import EPILOG, TERMINATED, add_import_arguments

if TYPE_CHECKING:
    from conversion.t5x_files import T5xFolder
    from conversion.tensors import TensorFile
    from conversion.to_artefact import Moments

FORMAT = "t5x checkpoint"
TARGET = "optimizer/target/"
MU, NU = "optimizer/state/param_states/0/mu/", "optimizer/state/param_states/0/nu/"
ADAM_COUNT, SCHEDULE_COUNT = "optimizer/state/param_states/0/count", "optimizer/state/param_states/2/count"
STEP = "optimizer/state/step"

DECAY_NOTE = (
    "weight decay: the t5x trainer decays the token table and the class token too, optim.decay does not by default; "
    "to go on with its optimiser, set optim.decay to clipa_eqx.optim.T5X_DECAY"
)
"""Where going on with the default config would silently be another optimiser (facts 3.2, 6.2)."""


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
    exit_on_sigterm(TERMINATED)
    # Nothing here needs an accelerator, and on a TPU host a training run may hold them.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import_t5x(arguments)


def import_t5x(arguments: argparse.Namespace) -> None:
    """Convert one folder.

    Raises:
        ConversionError: lists what is missing, unused, mis-shaped, damaged, or cannot be told from shapes.
        CheckpointError: the destination exists.
    """
    from conversion.flax_shapes import layout_of
    from conversion.import_checkpoint import Checkpoint, import_checkpoint
    from conversion.t5x_files import T5xFolder

    with T5xFolder(arguments.source) as source:
        params, moments = split_checkpoint(source)
        moments = None if arguments.no_optimiser else moments
        layout = layout_of(params.tensors)
        about = {"attention": layout.attention, "temperature": list(layout.temperature)}
        notes = () if moments is None else _optimiser_notes(moments)
        import_checkpoint(Checkpoint(FORMAT, params, moments, layout, about, notes), arguments)


def _optimiser_notes(moments: "Moments") -> tuple[str, ...]:
    notes = [DECAY_NOTE]
    if moments.updates != moments.schedule_steps:
        notes.append(
            f"Adam has counted {moments.updates} updates, the schedules {moments.schedule_steps}: this trainer keeps "
            "Adam's count of the pre-training when it starts a fine-tuning"
        )
    return tuple(notes)


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
            f"{source.path}: the checkpoint is not of the reference's t5x trainer, {listed(problems)}"
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
