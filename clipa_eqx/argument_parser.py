"""The parser of all programs: a mistake is one line, with the flag that may have been meant."""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from clipa_eqx.errors import ConfigError
from clipa_eqx.similar_flags import similar

_LONGEST = 300  # characters of a mistake that are shown


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose mistakes are a ``ConfigError``, which ``cli.run`` prints, instead of the lines of its usage.

    Flags are never abbreviated, and none but those of action ``append`` or ``extend`` is given twice. A parser of
    subcommands makes parsers of this class too.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """Make a parser; the arguments are those of argparse."""
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._parsed: argparse.Namespace | None = None
        self._given: set[str] = set()
        self._words: tuple[str, ...] = ()
        for name, action in ((None, _StoreOnce), ("store", _StoreOnce), ("store_true", _SetOnce)):
            self.register("action", name, action)

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        """Parse as argparse does, and keep the words for messages."""
        words: Sequence[str] | None = args[0] if args else options.get("args")
        self._words = tuple(sys.argv[1:] if words is None else words)
        return super().parse_known_args(*args, **options)

    def note_flag(self, action: argparse.Action, flag: str, parsed: argparse.Namespace) -> None:
        """Note a flag of which only the last would count.

        Raises:
            ConfigError: it was given before, among the same arguments.
        """
        if parsed is not self._parsed:
            self._parsed, self._given = parsed, set()
        if action.dest in self._given:
            values = "" if action.nargs in (None, 0) else ", with all its values"
            self.error(f"{flag} is given twice; give it once{values}")
        self._given.add(action.dest)

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
        likely = [*map(self._meant, unknown), self._repeatable(message), self._misspelled(message)]
        if len(message) > _LONGEST:
            message = f"{message[:_LONGEST]}...; a pattern of many names needs quotes, such as 'folder/*.tar'"
        raise ConfigError(f"{message}{''.join(likely)}; --help lists the arguments")

    def _repeatable(self, message: str) -> str:
        """A hint for values that no flag takes, if a flag takes several values only by being repeated."""
        several = dict.fromkeys(_flags(self, repeatable=True))
        if several and re.match(r"unrecognized arguments: (?!-)", message):
            return f"; {' and '.join(several)} may be repeated, with one value each time"
        return ""

    def _misspelled(self, message: str) -> str:
        """A hint for a required flag that is missing because it was misspelled."""
        if not message.startswith("the following arguments are required: "):
            return ""
        missing = re.findall(r"--[^\s,=/]+", message)
        unknown = [word.split("=")[0] for word in self._words if word.startswith("--") and len(word) > 2]
        found = [(flag, similar(flag, missing)) for flag in unknown if flag not in self.flags]
        return "".join(f"; for {flag}, did you mean {' or '.join(near)}?" for flag, near in found if near)

    def _meant(self, flag: str) -> str:
        """A hint for an unknown flag: the subcommands that take it, or else the flags that are most like it."""
        if takers := list(_takers(self, flag)):
            return f"; only {', '.join(takers)} {'take' if len(takers) > 1 else 'takes'} {flag}"
        found = similar(flag, self.flags)
        return f"; for {flag}, did you mean {' or '.join(found)}?" if found else ""


class _StoreOnce(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if option_string is not None and isinstance(parser, ArgumentParser):
            parser.note_flag(self, option_string, namespace)
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)


class _SetOnce(_StoreOnce):
    def __init__(self, *names: Any, default: bool = False, **options: Any) -> None:
        super().__init__(*names, **{"nargs": 0, "const": True, "default": default, **options})


def _flags(parser: argparse.ArgumentParser, *, repeatable: bool = False) -> Iterator[str]:
    for action in parser._actions:
        if not repeatable or (action.nargs is None and not isinstance(action, _StoreOnce)):
            yield from (flag for flag in action.option_strings if flag.startswith("--"))
        if isinstance(action.choices, dict):
            for one in action.choices.values():
                if isinstance(one, argparse.ArgumentParser):
                    yield from _flags(one, repeatable=repeatable)


def _takers(parser: argparse.ArgumentParser, flag: str) -> Iterator[str]:
    """Yield the names of the subcommands that take a flag."""
    for action in parser._actions:
        for name, one in action.choices.items() if isinstance(action.choices, dict) else ():
            if isinstance(one, argparse.ArgumentParser) and flag in _flags(one):
                yield str(name)
