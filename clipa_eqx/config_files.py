"""Configs as Python files, and changes to them from the command line."""

import contextlib
import io
import re
import sys
import traceback
import types
from collections.abc import Sequence
from pathlib import Path

import tyro

from clipa_eqx.config_flags import apply_none, clear_other_units, explain, repeated_flags, unknown_flags
from clipa_eqx.errors import ClipaError, ConfigError
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import FORMER_NAMES


def load_config(path: Path | str) -> ExperimentConfig:
    """The config that the function ``config()`` of a Python file returns.

    Raises:
        ConfigError: there is no such file, it has no such function, its code fails (the message names file and line),
            or it returns something else.
    """
    path = Path(path)
    try:
        source = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"config file {path} does not exist; give the path of a Python file") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error  # an OSError's own words repeat the path
        raise ConfigError(f"config file {path} cannot be read ({reason}); give the path of a Python file") from error
    module = types.ModuleType(f"clipa_eqx_run_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}")
    module.__file__ = str(path)
    # Dataclasses of a config file look up their module by name.
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
        make = getattr(module, "config", None)
        if not callable(make):
            raise ConfigError(f"config file {path} has no function config(); write `def config() -> ExperimentConfig:`")
        made = make()
        if not isinstance(made, ExperimentConfig):
            raise ConfigError(f"config file {path}: config() returned {type(made).__name__}, expected ExperimentConfig")
    except Exception as error:
        where = _place(error, path)
        if where is None and isinstance(error, ConfigError):
            raise
        kind = "" if isinstance(error, ClipaError) else f"{type(error).__name__}: "
        raise ConfigError(f"config file {where or path}: {kind}{error}") from error
    return made


def apply_overrides(
    config: ExperimentConfig, argv: Sequence[str], *, program: str | None = None, program_flags: Sequence[str] = ()
) -> ExperimentConfig:
    """The config with scalars changed by flags such as ``--optim.peak-lr 4e-4 --data.sources.0.folder X``.

    ``--zero-shot none`` and ``--init none`` leave out parts; a duration in another unit replaces the one of the file.
    Flags cannot add parts that the file leaves out (``None``), nor change the kind of a part, such as of a schedule.
    ``--help`` among the flags prints all of them and exits with 0.

    Args:
        program: what the help calls the program.
        program_flags: flags of the program itself, which a wrong flag may have meant.

    Raises:
        ConfigError: unknown flags, a flag given twice, values of the wrong type, or a result that contradicts itself.
    """
    if repeated := repeated_flags(argv):
        raise ConfigError(f"command line: {repeated[0]} is given twice; give it once")
    try:
        config, rest = apply_none(config, [_current_flag(argument) for argument in argv])
    except ConfigError as error:
        raise ConfigError(f"command line: {error}") from error
    rest = clear_other_units(config, rest)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                ExperimentConfig,
                default=config,
                args=rest,
                prog=program,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        unknown = [explain(config, flag, also=program_flags) for flag in unknown_flags(config, rest)]
        reasons = "; ".join(unknown) or _plain(said.getvalue())
        raise ConfigError(f"command line: {reasons}") from None


def _current_flag(argument: str) -> str:
    """A flag with the current names of fields that have been renamed; its value is not changed.

    >>> _current_flag("--data.sources.0.colour=x")
    '--data.sources.0.color=x'
    """
    flag, equals, value = argument.partition("=")
    if not flag.startswith("--"):
        return argument
    fields = flag.removeprefix("--").split(".")
    return "--" + ".".join(FORMER_NAMES.get(field, field) for field in fields) + equals + value


def _place(error: Exception, path: Path) -> str | None:
    """Position of an error in the config file, as ``file:line``; ``None`` if the traceback does not pass through it."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else None


def _plain(panel: str) -> str:
    """The words of tyro's message without its frame, separators and hint to the help."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", panel)
    lines = [line.strip("│ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    words = " ".join(";" if line and set(line) == {"─"} else line for line in lines).replace(" ;", ";")
    return re.sub(r";?\s*For full helptext, (run|see) .*", "", words).replace(":;", ":")
