"""The parser of all programs: a mistake is one line, with the flag that may have been meant."""

import argparse
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from clipa_eqx.errors import ConfigError
from clipa_eqx.similar_flags import similar

_LONGEST = 300  # characters of a mistake that are shown


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose mistakes are a ``ConfigError``, which ``cli.run`` prints, instead of the lines of its usage.

    Flags are never abbreviated. A parser of subcommands makes parsers of this class too.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """Make a parser; the arguments are those of argparse."""
        super().__init__(*args, **{"allow_abbrev": False, **options})

    @property
    def flags(self) -> tuple[str, ...]:
        """The long flags of this parser and of its subcommands."""
        return tuple(dict.fromkeys(_flags(self)))

    def error(self, message: str) -> NoReturn:
        """Raise the mistake that argparse found.

        Raises:
            ConfigError: always.
        """
        unknown = re.findall(r"(?<!\S)--[^\s=]+", message) if message.startswith("unrecognized arguments") else []
        likely = [
            f"; for {flag}, did you mean {' or '.join(found)}?" for flag in unknown if (found := self._near(flag))
        ]
        if len(message) > _LONGEST:
            message = f"{message[:_LONGEST]}...; a pattern of many names needs quotes, such as 'folder/*.tar'"
        raise ConfigError(f"{message}{''.join(likely)}; --help lists the arguments")

    def _near(self, flag: str) -> list[str]:
        return similar(flag, self.flags)


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (flag for flag in action.option_strings if flag.startswith("--"))
        if isinstance(action.choices, dict):
            for one in action.choices.values():
                if isinstance(one, argparse.ArgumentParser):
                    yield from _flags(one)
