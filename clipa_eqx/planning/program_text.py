"""Text of a compiled TPU program: its collectives, with loops counted as often as they run, and its arrays."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

Kind = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute"]
KINDS: tuple[Kind, ...] = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "token": 0}


class Array(NamedTuple):
    """An array type of the text.

    Attributes:
        dtype: such as "bf16".
        shape: sizes of the axes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype, int(digits[0]) if digits else 0)
        return math.prod(self.shape) * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Collective(NamedTuple):
    """A collective operation.

    Attributes:
        arrays: what it works on: the complete arrays, before a reduce-scatter and after an all-gather.
        devices: devices of a group.
        times: how often a step runs it.
        is_certain: False if a loop around it runs a number of times that the text does not show; it counts as one.
    """

    kind: Kind
    arrays: tuple[Array, ...]
    devices: int
    times: int
    is_certain: bool = True

    @property
    def bytes(self) -> int:
        """Bytes of the complete arrays, each time it runs."""
        return sum(array.bytes for array in self.arrays)

    @property
    def sent(self) -> float:
        """Bytes that a device sends each time: the least that a ring of its group needs."""
        share = (self.devices - 1) / self.devices
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


class Loop(NamedTuple):
    """A loop of the program.

    Attributes:
        trips: how often its body runs each time; None if the text does not show it.
        carried: arrays that it takes and returns, stacked results included.
        is_backward: whether it is part of the backward pass.
    """

    trips: int | None
    carried: tuple[Array, ...]
    is_backward: bool


class _Instruction(NamedTuple):
    result: str
    operation: str
    line: str


_Program = Mapping[str, tuple[_Instruction, ...]]


def collectives(text: str, *, devices: int) -> list[Collective]:
    """All collectives of a program; equal ones are joined.

    A reduce-scatter that the compiler writes as a fusion of an all-reduce counts as a reduce-scatter. One that runs
    next to other operations is written once where it starts, again in each of these, and where it ends; it counts once.

    Args:
        text: of the optimized program, as ``compiled.as_text()`` gives it.
        devices: number of devices that run it.
    """
    program, counts = _parse(text), dict[Collective, int]()
    for computation, times, is_certain in _runs(program, _entry(text)):
        if _is_later_part(computation, program[computation]):
            continue
        for one in program[computation]:
            kind = one.operation.removesuffix("-start")
            if kind not in KINDS:
                continue
            size = _group_size(one.line, devices)
            if size < 2:
                continue
            is_scatter = kind == "all-reduce" and computation.startswith("all-reduce-scatter")
            arrays = _moved(kind, one, size)
            key = Collective("reduce-scatter" if is_scatter else kind, arrays, size, 1, is_certain)
            counts[key] = counts.get(key, 0) + times
    found = [key._replace(times=count) for key, count in counts.items()]
    return sorted(found, key=lambda one: -one.sent * one.times)


def loops(text: str) -> list[Loop]:
    """The loops of a program, in the order of the text."""
    program = _parse(text)
    return [
        Loop(_trips(program, one.line), tuple(_arrays(one.result)), "transpose(" in one.line)
        for instructions in program.values()
        for one in instructions
        if one.operation == "while"
    ]


def arrays(text: str) -> set[Array]:
    """The types of all arrays of a program."""
    return set(_arrays(text))


def _parse(text: str) -> _Program:
    program: dict[str, tuple[_Instruction, ...]] = {}
    name, lines = "", list[_Instruction]()
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name, lines = head[1], []
        elif line.startswith("}"):
            program[name] = tuple(lines)
        elif found := re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z0-9\-]*)\(", line):
            lines.append(_Instruction(found[1], found[2], line))
    return program


def _entry(text: str) -> str:
    found = re.search(r"^ENTRY %?([\w.\-]+) ", text, re.MULTILINE)
    return found[1] if found else ""


def _runs(program: _Program, name: str, times: int = 1, is_certain: bool = True) -> Iterator[tuple[str, int, bool]]:
    """Yield each computation that runs, and how often."""
    if name not in program:
        return
    yield name, times, is_certain
    for one in program[name]:
        if one.operation == "while":
            trips, body = _trips(program, one.line), _attribute(one.line, "body")
            yield from _runs(program, body, times * (1 if trips is None else trips), is_certain and trips is not None)
        elif one.operation == "conditional":
            for branch in re.findall(r"%([\w.\-]+)", _attribute(one.line, "branch_computations", value=r"\{[^}]*\}")):
                yield from _runs(program, branch, times, is_certain)
        elif one.operation in ("fusion", "call", "async-start", "custom-call"):
            called = _attribute(one.line, "calls") or _attribute(one.line, "to_apply")
            yield from _runs(program, called, times, is_certain)


def _trips(program: _Program, line: str) -> int | None:
    """Number of times that a loop runs: what the compiler notes, or else the only limit in its condition."""
    if noted := re.search(r'known_trip_count"?[=:]\{"n":"(\d+)"', line):
        return int(noted[1])
    limits = {
        int(value[1])
        for computation, _, _ in _runs(program, _attribute(line, "condition"))
        for one in program[computation]
        if (value := re.search(r"s32\[\]\S* constant\((\d+)\)", one.line))
    }
    return limits.pop() if len(limits) == 1 else None


def _is_later_part(name: str, instructions: tuple[_Instruction, ...]) -> bool:
    """Whether a computation only continues a collective that another one has started."""
    ends = any('custom_call_target="AsyncCollectiveDone"' in one.line for one in instructions)
    return ends or name.startswith("async_collective_fusion")


def _attribute(line: str, name: str, value: str = r"%?[\w.\-]+") -> str:
    found = re.search(rf"[ ,]{name}=({value})", line)
    return found[1].removeprefix("%") if found else ""


def _arrays(text: str) -> list[Array]:
    return [
        Array(dtype, tuple(int(size) for size in shape.split(",") if size))
        for dtype, shape in re.findall(r"\b(pred|[suf]\d+|bf16|f8\w+)\[([\d,]*)\]", text)
    ]


def _moved(kind: str, one: _Instruction, group: int) -> tuple[Array, ...]:
    """The complete arrays of a collective."""
    found = _arrays(one.result)
    if one.operation.endswith("-start") and kind != "all-reduce":
        # The result is operands, results and, for some, counters.
        found = [array for array in found if array.shape] or found
        found = found[len(found) // 2 :]
    if kind == "reduce-scatter":
        found = [Array(array.dtype, (group, *array.shape)) for array in found]
    return tuple(found)


def _group_size(line: str, devices: int) -> int:
    """Devices of a group, in any of the three ways in which the text writes groups."""
    if "source_target_pairs=" in line:
        return devices
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
        return int(counted[2])
    if meshed := re.search(r"replica_groups=@?\w*\[(.*?)\](?:, device_ids=\(.*?\))? \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", meshed[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", meshed[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    return devices
