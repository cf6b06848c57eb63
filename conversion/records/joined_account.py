"""The account of a joined folder: the sums of what the manifests of its members count."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from clipa_eqx.data.manifest import Manifest
from conversion.records.keys import Fingerprint

Info = Mapping[str, object]

# Options of conversions of which a score says that they change its images: those of all members are kept.
_OPTIONS = ("limit", "max_side")


def joined_account(manifests: Sequence[Manifest]) -> tuple[dict[str, int], dict[str, object]]:
    """Dropped rows by reason and ``info`` of a joined folder. What only some members count is left out.

    Args:
        manifests: those of the members, in order.
    """
    dropped: Counter[str] = Counter()
    for manifest in manifests:
        dropped.update(manifest.rows_dropped)
    infos = [manifest.info for manifest in manifests if manifest.rows_read]
    found: dict[str, object | None] = {
        "command": _command(infos),
        "captions_written": _over(infos, "captions_written", sum),
        "captions_dropped": _counts(infos, "captions_dropped"),
        "captions_of_lines": sum(_numbers(infos, "captions_of_lines")) or None,
        "captions_per_record": _span(infos, "captions_per_record", "fewest", "most"),
        "labels": _span(infos, "labels", "lowest", "highest"),
        "most_labels": max(_numbers(infos, "most_labels"), default=None),
        "downloads": _counts([info for info in infos if "downloads" in info], "downloads") or None,
        "key_fingerprint": _fingerprint(infos, "key_fingerprint"),
        "content_fingerprint": _fingerprint(infos, "content_fingerprint"),
        "templates": _equal(infos, "templates"),
    }
    return dict(sorted(dropped.items())), {name: value for name, value in found.items() if value is not None}


def _command(infos: Sequence[Info]) -> dict[str, object]:
    """The command as a manifest has it, with the options of the members' conversions; different values as a text."""
    commands = [info.get("command") for info in infos]
    options: dict[str, object] = {}
    for name in _OPTIONS:
        values = [command.get(name) if isinstance(command, dict) else None for command in commands]
        different = [value for i, value in enumerate(values) if value not in values[:i]]
        if any(value is not None for value in different):
            is_one = len(different) == 1
            options[name] = different[0] if is_one else " or ".join(str(one or "none") for one in different)
    return {"kind": "join", **options}


def _numbers(infos: Iterable[Info], name: str) -> list[int]:
    """The numbers of the members that have one."""
    return [value for info in infos if type(value := info.get(name)) is int]


def _over(infos: Sequence[Info], name: str, function: Callable[[list[int]], int]) -> int | None:
    """A function of the numbers of all members; None if one of them has none."""
    numbers = _numbers(infos, name)
    return function(numbers) if len(numbers) == len(infos) else None


def _counts(infos: Sequence[Info], name: str) -> dict[str, int] | None:
    """The sums of the counts of all members, by name; None if one of them has none."""
    total: Counter[str] = Counter()
    for info in infos:
        counts = info.get(name)
        if not isinstance(counts, dict):
            return None
        total.update({str(key): count for key, count in counts.items() if type(count) is int})
    return dict(sorted(total.items()))


def _span(infos: Iterable[Info], name: str, low: str, high: str) -> dict[str, int] | None:
    """The lowest and the highest number over the members that have both."""
    spans = [span for info in infos if isinstance(span := info.get(name), dict)]
    lows, highs = _numbers(spans, low), _numbers(spans, high)
    return {low: min(lows), high: max(highs)} if lows and highs else None


def _fingerprint(infos: Sequence[Info], name: str) -> str | None:
    """The fingerprint of all records, which is a sum over them; None if a member has none."""
    total = Fingerprint()
    for info in infos:
        value = info.get(name)
        try:
            total.add(bytes.fromhex(value) if isinstance(value, str) else b"")
        except ValueError:
            return None
        if not isinstance(value, str):
            return None
    return total.hex() if infos else None


def _equal(infos: Sequence[Info], name: str) -> object | None:
    """The value that all members have; None if they differ."""
    values = [info.get(name) for info in infos]
    return values[0] if values and all(value == values[0] for value in values) else None
