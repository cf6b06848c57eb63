"""Conditions of ``--where``: a small language of comparisons, parsed and checked before anything is read."""

import ast
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clipa_eqx.errors import DataError
from conversion.records.condition_syntax import (
    EQUALITIES,
    FLAG,
    ORDERS,
    column_of,
    constant_of,
    in_one_line,
    is_exact,
    is_unicode,
    operands_first,
)
from conversion.records.rows import shortened

Kind = Literal["number", "text", "truth"]
"""A kind of values. An expression that is a truth is a condition."""

KINDS: Mapping[Kind, str] = {"number": "numbers", "text": "texts", "truth": "truth values"}


_LONGEST = 2000  # characters
_NO_UNICODE = "is no Unicode text: it has half of a surrogate pair"
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div)
_ALLOWED = (
    "allowed are columns, col('any name'), numbers, texts in quotes, True, False, comparisons, in, not in, is None, "
    "is not None, and, or, not, + - * / and parentheses"
)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A parsed expression.

    Attributes:
        text: the expression.
        body: its syntax tree, in which only what is allowed occurs.
        kinds: kind of values of each column, in the order of the expression; None if the expression leaves it open.
        groups: columns of which the kind is open and that are compared with each other, so that it is the same.
    """

    text: str
    body: ast.expr
    kinds: Mapping[str, Kind | None]
    groups: tuple[tuple[str, ...], ...]


@functools.cache
def parse_conditions(texts: tuple[str, ...]) -> tuple[Condition, ...]:
    """Parse the expressions.

    Raises:
        DataError: one is no condition, or uses more of Python than is allowed; the message has the place.
    """
    return tuple(map(_parse, texts))


def condition_columns(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that the expressions use, in order."""
    return tuple(dict.fromkeys(name for condition in parse_conditions(texts) for name in condition.kinds))


def _parse(text: str) -> Condition:
    plain = in_one_line(text.strip())
    if not plain or len(plain) > _LONGEST:
        raise DataError(f"{FLAG} needs an expression of 1 to {_LONGEST:,} characters, such as 'similarity > 0.3'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(plain, mode="eval").body
    except SyntaxError as error:
        at = f" at character {error.offset}" if error.offset else ""
        raise DataError(
            f"{FLAG} {plain!r} is no expression: {error.msg}{at}; a column with another name than a word of letters, "
            f"digits and _ is written as col('its name')"
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:  # a NUL, a lone surrogate, thousands of parentheses
        raise DataError(f"{FLAG} {plain.encode(errors='backslashreplace').decode()!r} is no expression: {error}") from (
            error
        )
    return _Checker(plain).check(body)


class _Checker:
    """The check of one expression: what it uses, and the kinds of its columns."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._kinds: dict[str, Kind | None] = {}
        self._found: dict[ast.expr, Kind] = {}
        self._pairs: list[tuple[str, str]] = []

    def check(self, body: ast.expr) -> Condition:
        """The condition. Raises DataError."""
        for node in operands_first(body):
            self._kind(node)
        self._need(body, "truth", "a condition such as a comparison")
        groups: list[tuple[str, ...]] = []
        for group in self._compared():
            known: list[Kind] = [kind for name in group if (kind := self._kinds[name]) is not None]
            for name in group if known else ():
                self._use(body, name, known[0])
            groups += [] if known else [group]
        if not self._kinds:
            raise self._error(body, "uses no column")
        return Condition(text=self._text, body=body, kinds=self._kinds, groups=tuple(groups))

    def _compared(self) -> list[tuple[str, ...]]:
        """The groups of columns that comparisons connect."""
        groups: list[tuple[str, ...]] = []
        for pair in self._pairs:
            joined = [group for group in groups if set(group) & set(pair)]
            groups = [group for group in groups if group not in joined]
            groups.append(tuple(dict.fromkeys(name for group in (*joined, pair) for name in group)))
        return groups

    def _error(self, node: ast.expr, problem: str, advice: str = "") -> DataError:
        at = len(self._text.encode()[: node.col_offset].decode()) + 1
        part = self._part(node)
        where = "" if part == self._text else f" (character {at})"
        return DataError(f"{FLAG} {self._text!r}: {part!r}{where} {problem}{advice and f'; {advice}'}")

    def _part(self, node: ast.expr) -> str:
        return shortened(ast.get_source_segment(self._text, node) or "", 100)

    def _need(self, node: ast.expr, kind: Kind, what: str) -> None:
        """Check that an expression is of a kind; a column then is."""
        found = self._kind(node)
        name = column_of(node)
        if found is None and name is not None:
            self._use(node, name, kind)
        elif found != kind:
            raise self._error(node, f"is {_an(found)}, expected {what}")

    def _use(self, node: ast.expr, name: str, kind: Kind) -> None:
        known = self._kinds.get(name)
        if known not in (None, kind):
            raise self._error(node, f"uses the column {name!r} both for {KINDS[known]} and for {KINDS[kind]}")
        self._kinds[name] = kind

    def _kind(self, node: ast.expr) -> Kind | None:
        """The kind of an expression; None for a column of which it is not known yet."""
        name = column_of(node)
        if name is not None:
            return self._kind_of_column(node, name)
        if node not in self._found:  # else each level of comparisons in one another would double the steps
            self._found[node] = self._kind_of_compound(node)
        return self._found[node]

    def _kind_of_column(self, node: ast.expr, name: str) -> Kind | None:
        if not is_unicode(name):
            raise self._error(node, _NO_UNICODE)
        written = ast.get_source_segment(self._text, node)
        if isinstance(node, ast.Name) and written != name:
            raise self._error(node, f"is read as {name!r}, its normal form in Unicode", f"write col({written!r})")
        return self._kinds.setdefault(name, None)

    def _kind_of_compound(self, node: ast.expr) -> Kind:
        match node:
            case ast.Constant(value=value):
                return self._kind_of_constant(node, value)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                self._need(operand, "number", "a number")
                return "number"
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self._need(operand, "truth", "a condition")
                return "truth"
            case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _ARITHMETIC):
                self._need(left, "number", "a number")
                self._need(right, "number", "a number")
                return "number"
            case ast.BoolOp(values=values):
                for value in values:
                    self._need(value, "truth", "a condition")
                return "truth"
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                for a, op, b in zip([left, *comparators], ops, comparators, strict=False):
                    self._check_comparison(node, a, op, b)
                return "truth"
            case ast.Attribute():
                raise self._error(node, "is an attribute", "write the column as col('its name')")
            case ast.Call(func=ast.Name(id="col")):
                raise self._error(node, "must be col('name') with one text")
            case _:
                raise self._error(node, "is not allowed", _ALLOWED)

    def _kind_of_constant(self, node: ast.expr, value: object) -> Kind:
        match value:
            case bool():
                return "truth"
            case int() if not is_exact(value):
                raise self._error(
                    node, "is beyond 2^53, where not every whole number is exact", "choose ids by --subset"
                )
            case int() | float():
                return "number"
            case str() if not is_unicode(value):
                raise self._error(node, _NO_UNICODE)
            case str():
                return "text"
            case None:
                raise self._error(node, "is compared", "a missing value is found by `is None` or `is not None`")
            case _:
                raise self._error(node, "is not allowed", _ALLOWED)

    def _check_comparison(self, whole: ast.expr, a: ast.expr, op: ast.cmpop, b: ast.expr) -> None:
        if isinstance(op, ast.Is | ast.IsNot):
            if not isinstance(b, ast.Constant) or b.value is not None or column_of(a) is None:
                raise self._error(whole, "is not allowed: `is` and `is not` are for a column and None", "use == or !=")
            self._kind(a)
            return
        if isinstance(op, ast.In | ast.NotIn):
            self._check_list(a, b)
            return
        if not isinstance(op, (*ORDERS, *EQUALITIES)):
            raise self._error(whole, "is not allowed", _ALLOWED)
        if constant_of(a) is not None and constant_of(b) is not None:
            raise self._error(whole, "compares two constants")
        kind = self._kind(a) or self._kind(b)
        if kind is not None:
            self._need(a, kind, f"{_an(kind)} as {self._part(b)!r} is")
            self._need(b, kind, f"{_an(kind)} as {self._part(a)!r} is")
        elif (left := column_of(a)) is not None and (right := column_of(b)) is not None:
            self._pairs.append((left, right))
        if kind == "truth" and isinstance(op, ORDERS):
            raise self._error(whole, "has no order: truth values are equal or not")

    def _check_list(self, a: ast.expr, b: ast.expr) -> None:
        if not isinstance(b, ast.List | ast.Tuple | ast.Set) or not b.elts:
            raise self._error(b, "must be a list such as ['en', 'de']")
        if constant_of(a) is not None:
            raise self._error(a, "is a constant, expected a column before `in`")
        for item in b.elts:
            if not isinstance(item.operand if isinstance(item, ast.UnaryOp) else item, ast.Constant):
                raise self._error(item, "must be a number or text in quotes, as all values of a list")
        kind: Kind | None = None
        for item in b.elts:
            found = self._kind(item)
            if kind not in (None, found):
                raise self._error(b, "holds values of several kinds")
            kind = found
        if kind is None:
            raise self._error(b, "must hold values")
        self._need(a, kind, f"{_an(kind)} as in the list")


def _an(kind: Kind | None) -> str:
    return {"number": "a number", "text": "a text", "truth": "a condition", None: "a column"}[kind]
