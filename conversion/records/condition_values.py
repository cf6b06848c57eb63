"""Evaluation of conditions by pyarrow, on the values of several rows at once."""

import ast
import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clipa_eqx.errors import DataError, pip_install
from conversion.records.condition_syntax import FLAG, column_of, constant_of, is_exact, is_unicode, operands_first
from conversion.records.conditions import KINDS, Condition, Kind
from conversion.records.rows import shortened
from conversion.records.sources.source import is_installed
from conversion.records.sources.values import is_missing

Values = Mapping[str, object]
"""The values of a row by column."""

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LONGEST_NUMBER = 1000  # characters; enough for the exact digits of almost every fraction
_LONGEST = 40  # characters of a value that is shown
_INEXACT = "beyond 2^53, where not every whole number is exact"
_KERNELS: Mapping[type[ast.AST], str] = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
    ast.And: "and_kleene",
    ast.Or: "or_kleene",
}


class Outcome(NamedTuple):
    """The result of a condition for a row.

    Attributes:
        is_true: None if a value that decides it is missing, or not of its kind.
        wrong: what is wrong with a value that is not of its kind; empty if all are.
    """

    is_true: bool | None
    wrong: str = ""


def evaluate(condition: Condition, rows: Sequence[Values], *, kinds: Mapping[str, Kind]) -> list[Outcome]:
    """The result for each row.

    Args:
        kinds: kinds of the columns in ``groups``, as ``check_conditions`` finds them.
    """
    columns: dict[str, Any] = {}
    wrong: dict[int, str] = {}
    for name, known in condition.kinds.items():
        kind = known or kinds.get(name)
        values: list[object] = []
        for number, row in enumerate(rows):
            value = row.get(name)
            found = _missing(value) if kind is None else as_kind(value, kind)
            if isinstance(found, _Wrong):
                wrong.setdefault(number, f"{name} is {_problem(value, kind)}")
                found = None
            values.append(found)
        columns[name] = _arrow().array(values, type=_type(kind))
    values_of: dict[ast.expr, Any] = {}
    for node in operands_first(condition.body):
        values_of[node] = _value(node, columns, values_of)
    results: list[bool | None] = values_of[condition.body].to_pylist()
    return [
        Outcome(None, wrong[number]) if number in wrong else Outcome(result) for number, result in enumerate(results)
    ]


def check_conditions(
    conditions: Sequence[Condition], rows: Sequence[Values], *, where: str
) -> tuple[Mapping[str, Kind], ...]:
    """Check the values in the first rows; return, by condition, the kinds of columns it only compares with others.

    Raises:
        DataError: a column has values in these rows, and none is of the kind that an expression needs; or pyarrow is
            not installed.
    """
    if conditions and not is_installed("pyarrow"):
        raise DataError(f"{FLAG} is evaluated by pyarrow, which is not installed: {pip_install('pyarrow')}")
    found: list[dict[str, Kind]] = []
    for condition in conditions:
        kinds: dict[str, Kind] = {}
        found.append(kinds)
        for group in condition.groups:
            kinds |= dict.fromkeys(group, _usual_kind(rows, group))
        for name, known in condition.kinds.items():
            kind = known or kinds.get(name)
            values = [value for row in rows if not is_missing(value := row.get(name))]
            if kind is None or not values or any(not isinstance(as_kind(value, kind), _Wrong) for value in values):
                continue
            raise DataError(
                f"{FLAG} {condition.text!r}: column {name!r} holds {_described(values[0])} in {where}, "
                f"{_advice(values[0], kind)}"
            )
    return tuple(found)


def as_kind(value: object, kind: Kind) -> "bool | float | str | _Wrong | None":
    """The value as one of its kind; None if it is missing.

    - number: a number, or a text that is a decimal number of at most 1,000 characters. An empty text is missing, as in
      CSV.
    - text: a text, also an empty one.
    - truth: a truth value, or 0 or 1, also as the fractions that pandas writes beside missing values.
    """
    if is_missing(value):
        return None
    match kind:
        case "number":
            return _as_number(value)
        case "text":
            return value if isinstance(value, str) and is_unicode(value) else _WRONG
        case "truth":
            return bool(value) if isinstance(value, int | float) and value in (0, 1) else _WRONG


def shown_values(condition: Condition, row: Values) -> str:
    """The values that decided a condition, for the example of a dropped row."""
    return ", ".join(f"{name} = {shortened(repr(row.get(name)), _LONGEST)}" for name in condition.kinds)


def _problem(value: object, kind: Kind | None) -> str:
    return _INEXACT if _is_inexact(value, kind) else "of another kind"


def _is_inexact(value: object, kind: Kind | None) -> bool:
    """Check whether a number is needed, and this is a whole one that is not exact as a fraction."""
    is_whole = isinstance(value, int) or (isinstance(value, str) and re.fullmatch("[+-]?[0-9]+", value) is not None)
    return kind == "number" and is_whole and not isinstance(value, bool)


class _Wrong:
    """The mark of a value that is not of its kind."""


_WRONG = _Wrong()


def _as_number(value: object) -> float | _Wrong | None:
    match value:
        case bool():
            return _WRONG
        case int():
            return float(value) if is_exact(value) else _WRONG
        case float():
            return value
        case "":
            return None
        case str() if len(value) <= _LONGEST_NUMBER and _NUMBER.fullmatch(value):
            return float(value) if re.search("[.eE]", value) else _as_number(int(value))
        case _:
            return _WRONG


def _missing(value: object) -> bool | None:
    return None if is_missing(value) else True


def _usual_kind(rows: Sequence[Values], names: Sequence[str]) -> Kind:
    """The kind of the first value of some columns; numbers if there is none."""
    for value in (value for row in rows for name in names if (value := row.get(name)) not in (None, "")):
        fits: list[Kind] = [kind for kind in KINDS if not isinstance(as_kind(value, kind), _Wrong)]
        if fits:
            return fits[0]
    return "number"


def _described(value: object) -> str:
    match value:
        case bool():
            what = "truth values"
        case int() | float():
            what = "numbers"
        case str():
            what = "texts"
        case _:
            what = "bytes"
    return f"{what} such as {shortened(repr(value), _LONGEST)}"


def _advice(value: object, kind: Kind) -> str:
    if _is_inexact(value, kind):
        return f"{_INEXACT}; choose ids by --subset"
    return f"expected {KINDS[kind]}; {_way_out(value, kind)}"


def _way_out(value: object, kind: Kind) -> str:
    match value:
        case str() if kind == "number":
            return "only texts that are decimal numbers count as numbers; compare it with a text in quotes"
        case str():
            return "compare it with a text in quotes, such as == 'True'"
        case bool():
            return "compare it with True or False"
        case int() | float():
            return "compare it with a number, without quotes"
        case _:
            return "it is of no use here"


def _value(node: ast.expr, columns: Mapping[str, Any], values: Mapping[ast.expr, Any]) -> Any:
    """The values of an expression: an array, or a scalar for an expression of constants.

    Args:
        values: those of its operands.
    """
    compute, arrow = _compute(), _arrow()
    name = column_of(node)
    if name is not None:
        return columns[name]
    constant = constant_of(node)
    if constant is not None:
        return arrow.scalar(constant)
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return compute.negate(values[operand])
        case ast.UnaryOp(operand=operand):
            return compute.invert(values[operand])
        case ast.BinOp(left=left, op=op, right=right):
            return _arithmetic(op, values[left], values[right])
        case ast.BoolOp(op=op, values=parts):
            return _joined(_KERNELS[type(op)], [values[part] for part in parts])
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            pairs = zip([left, *comparators], ops, comparators, strict=False)
            return _joined("and_kleene", [_compared(values[a], op, b, values) for a, op, b in pairs])
        case _:
            raise AssertionError(ast.dump(node))  # the parser lets nothing else pass


def _joined(kernel: str, values: Sequence[Any]) -> Any:
    result = values[0]
    for value in values[1:]:
        result = getattr(_compute(), kernel)(result, value)
    return result


def _arithmetic(op: ast.operator, left: Any, right: Any) -> Any:
    compute = _compute()
    nothing = _arrow().scalar(None, _arrow().float64())
    if isinstance(op, ast.Div):
        right = compute.if_else(compute.equal(right, 0.0), nothing, right)
    result = getattr(compute, _KERNELS[type(op)])(left, right)
    return compute.if_else(compute.is_nan(result), nothing, result)


def _compared(left: Any, op: ast.cmpop, b: ast.expr, values: Mapping[ast.expr, Any]) -> Any:
    compute = _compute()
    if isinstance(op, ast.Is | ast.IsNot):
        return compute.is_null(left) if isinstance(op, ast.Is) else compute.is_valid(left)
    if isinstance(b, ast.List | ast.Tuple | ast.Set):
        items = _arrow().array([constant_of(item) for item in b.elts], type=left.type)
        if left.type == _type("number"):  # 0.0 makes -0.0 0.0, which a search in a list tells apart
            left, items = compute.add(left, 0.0), compute.add(items, 0.0)
        found = compute.is_in(left, value_set=items)
        # A missing value is in no list, and not outside of it either.
        found = compute.if_else(compute.is_valid(left), found, _arrow().scalar(None, _arrow().bool_()))
        return compute.invert(found) if isinstance(op, ast.NotIn) else found
    return getattr(compute, _KERNELS[type(op)])(left, values[b])


def _type(kind: Kind | None) -> Any:
    arrow = _arrow()
    match kind:
        case "number":
            return arrow.float64()
        case "text":
            return arrow.string()
        case _:
            return arrow.bool_()


def _arrow() -> Any:
    return importlib.import_module("pyarrow")


def _compute() -> Any:
    return importlib.import_module("pyarrow.compute")
