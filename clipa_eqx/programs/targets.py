"""Show a target: determine what it is, print its description, and draw the sheet of its samples or its curves."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from clipa_eqx.buckets.mirror import bucket_of, local_copy, named, shown
from clipa_eqx.config_files import apply_overrides, load_config
from clipa_eqx.errors import CheckpointError, ConfigError, DataError
from clipa_eqx.programs.describe import describe_config, describe_model, describe_records, describe_run
from clipa_eqx.programs.run_report import write_run_report
from clipa_eqx.programs.sheets import draw_config, draw_records
from clipa_eqx.programs.watch import show_curves
from clipa_eqx.saved.by_name import is_name, local_model
from clipa_eqx.saved.kinds import expect_kind, kind_of
from clipa_eqx.training.run_lock import is_starting


def show(
    target: Path,
    overrides: Sequence[str],
    *,
    program: str,
    program_flags: Sequence[str] = (),
    sheet: Path | None,
    samples: int,
    mesh: tuple[int, int, int] | None,
    out: Path | None = None,
    every_seconds: float | None = None,
    report: Path | None = None,
) -> None:
    """Print a config file, a model folder, a run folder or a record folder.

    Args:
        overrides: flags that change a config file.
        program: what their help calls the program.
        program_flags: flags of the program itself, which a wrong flag may have meant.
        sheet: where to draw samples of a config or of records.
        samples: how many.
        mesh: sizes of the axes data, fsdp and tensor that parameters are split over.
        out: the image file for the curves of a run; None is ``NAME-curves.png`` in the current folder.
        every_seconds: show only progress and curves of a run, again and again until it is finished.
        report: write only the report of a run, to this file; an empty path is that in the run folder.

    Raises:
        CheckpointError: the target is none of these.
        ConfigError: a flag does not fit it.
        ClipaError: the target is damaged.
    """
    with named(target):
        _show(
            local_model(target) if is_name(target) else local_copy(target, with_weights=False),
            overrides,
            program=program,
            program_flags=program_flags,
            sheet=sheet,
            samples=samples,
            mesh=mesh,
            out=out,
            every_seconds=every_seconds,
            report=report,
        )


def _show(
    target: Path,
    overrides: Sequence[str],
    *,
    program: str,
    program_flags: Sequence[str],
    sheet: Path | None,
    samples: int,
    mesh: tuple[int, int, int] | None,
    out: Path | None,
    every_seconds: float | None,
    report: Path | None,
) -> None:
    if is_starting(target):
        raise CheckpointError(f"{target}: a run starts there and has written nothing yet; try again when it trains")
    is_run = target.suffix != ".py" and kind_of(target) == "run folder"
    if not is_run and (out is not None or every_seconds is not None):
        raise ConfigError(f"--out and --every show the curves of a run folder; {target} is none")
    if report is not None:
        if not is_run:
            raise ConfigError(f"--report is for a run folder; {target} is none")
        if bucket_of(target) is not None and report == Path():
            raise ConfigError(f"{shown(target)}: the run writes its report there itself; name a file after --report")
        if out is not None or every_seconds is not None or sheet is not None:
            raise ConfigError("--report writes only the report; leave out --out, --every and --sheet")
        print(f"report written to {write_run_report(target, None if report == Path() else report)}")
        return
    if target.suffix == ".py":
        config = apply_overrides(load_config(target), overrides, program=program, program_flags=program_flags)
        if sheet is None:
            _print(describe_config(config, mesh))
        else:
            draw_config(config, sheet, samples=samples)
            print(f"{samples} samples drawn to {sheet}")
        return
    kind = expect_kind(target, "run folder", "model folder", "record folder", other="a Python config file")
    if kind == "record folder":
        _print(describe_records(target))
        _draw_records(target, sheet, samples=samples)
        return
    _refuse(sheet)
    if kind == "model folder":
        _print(describe_model(target, mesh))
        return
    if every_seconds is None:
        _print(describe_run(target, mesh))
        print()
    show_curves(target, out, every_seconds=every_seconds)


def _draw_records(folder: Path, sheet: Path | None, *, samples: int) -> None:
    """Draw a sheet. If the user named no file, an obstacle is only reported: the manifest has been shown."""
    path = sheet or Path(f"{folder.resolve().name}-sheet.png")
    try:
        if sheet is None and Path.cwd() == folder.resolve():
            raise DataError("it would be written into the record folder; name a file with --sheet")
        draw_records(folder, path, samples=samples)
    except (ConfigError, DataError) as error:
        if sheet is not None:
            raise
        print(f"no sheet is drawn: {error}")
    else:
        print(f"{samples} samples drawn to {path}")


def _refuse(sheet: Path | None) -> None:
    if sheet is not None:
        raise ConfigError("--sheet draws samples of a record folder or of a config file; give one of these")


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
