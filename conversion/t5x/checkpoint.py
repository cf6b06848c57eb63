"""Parameters and optimizer state of a checkpoint of the t5x branch."""

from clipa_eqx.errors import ConversionError, listed
from conversion.t5x.folder import T5xFolder
from conversion.weights.moments import Moments
from conversion.weights.tensors import TensorFile, TensorView

TARGET = "optimizer/target/"
MU, NU = "optimizer/state/param_states/0/mu/", "optimizer/state/param_states/0/nu/"
ADAM_COUNT, SCHEDULE_COUNT = "optimizer/state/param_states/0/count", "optimizer/state/param_states/2/count"
STEP = "optimizer/state/step"


def split_checkpoint(source: T5xFolder) -> tuple[TensorFile, Moments | None]:
    """Parameters and optimizer state of a checkpoint, under the names of the parameters.

    Raises:
        ConversionError: lists all unknown entries and all missing entries of an optimizer state.
    """
    trees = {prefix: _under(source, prefix) for prefix in (TARGET, MU, NU)}
    counts = [name for name in (ADAM_COUNT, SCHEDULE_COUNT, STEP) if name in source.tensors]
    known = {*counts, *(name for tree in trees.values() for name in tree.values())}
    problems = [f"unused: {name} {info.shape}" for name, info in source.tensors.items() if name not in known]
    params = set(trees[TARGET])
    if not params:
        problems.append(f"missing: parameters under {TARGET}")
    has_state = bool(trees[MU] or trees[NU] or ADAM_COUNT in counts)
    if has_state:
        for prefix in (MU, NU):
            problems += [
                f"unused: {prefix}{name}, which belongs to no parameter" for name in sorted(set(trees[prefix]) - params)
            ]
        problems += [f"missing: {NU}{name}" for name in sorted(set(trees[MU]) - set(trees[NU]))]
        problems += [f"missing: {MU}{name}" for name in sorted(set(trees[NU]) - set(trees[MU]))]
        problems += [f"missing: {name}" for name in (ADAM_COUNT, SCHEDULE_COUNT, STEP) if name not in counts]
    numbers = {name: _count(source, name, problems) for name in counts}
    # A new stage sets both to zero; only Adam's count continues (docs/reference.md F3.2).
    if len(numbers) == 3 and numbers[STEP] != numbers[SCHEDULE_COUNT]:
        problems.append(f"{STEP} is {numbers[STEP]}, {SCHEDULE_COUNT} {numbers[SCHEDULE_COUNT]}; expected the same")
    if problems:
        raise ConversionError(f"{source.path}: not a checkpoint of the reference's t5x trainer, {listed(problems)}")
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


def _under(source: T5xFolder, prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): name for name in source.tensors if name.startswith(prefix)}


def _count(source: T5xFolder, name: str, problems: list[str]) -> int:
    info = source.tensors[name]
    value = source.read(name).item() if info.shape == () and info.dtype.kind in "iu" else None
    if value is None or not 0 <= value < 1 << 31:
        problems.append(f"{name} is {info.dtype}{list(info.shape)} {value}, expected a count")
        return 0
    return int(value)
