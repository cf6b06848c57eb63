"""Parts of the syntax trees of conditions, and their text before it is parsed."""

import ast
import re

from clipa_eqx.errors import DataError
from conversion.records.rows import printable

FLAG = "--where"
ORDERS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
EQUALITIES = (ast.Eq, ast.NotEq)

_MOST_EXACT = 2**53  # whole numbers up to here are exact as fractions
_LEXEMES = re.compile(
    r"""
    (?P<constant> (?P<quotes> \"{3} | '{3} | " | ' ) (?: \\. | (?! (?P=quotes) ). )*? (?P=quotes) )
    | (?P<open> ["'].* )
    | (?P<comment> \# )
    | (?P<end> \\? (?: \r\n | \n | \r ) )
    """,
    re.DOTALL | re.VERBOSE,
)


def column_of(node: ast.expr) -> str | None:
    """The column that an expression is, as a name or ``col("name")``; None for any other expression."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Call(func=ast.Name(id="col"), args=[ast.Constant(value=str(name))], keywords=[]):
            return name
        case _:
            return None


def constant_of(node: ast.expr) -> bool | float | str | None:
    """The value of a constant, also of a negative number; None for any other expression, and for inexact numbers."""
    match node:
        case ast.Constant(value=bool(value) | str(value)):
            return value
        case ast.Constant(value=int(value) | float(value)):
            return float(value) if isinstance(value, float) or is_exact(value) else None
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float()) as operand):
            value = constant_of(operand)
            return -value if isinstance(value, float) else None
        case _:
            return None


def is_exact(number: int) -> bool:
    """Check whether every whole number up to this one is exact as a fraction."""
    return abs(number) <= _MOST_EXACT


def is_unicode(text: str) -> bool:
    """Check whether a text has no halves of surrogate pairs, which stand for no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def operands_first(body: ast.expr) -> list[ast.expr]:
    """The expressions of which a condition consists and itself, each after its operands, from left to right.

    Steps through them need no calls in one another, of which Python has a limit.
    """
    found: list[ast.expr] = []
    left = [body]
    while left:
        found.append(left.pop())
        left += _operands(found[-1])
    return found[::-1]


def _operands(node: ast.expr) -> list[ast.expr]:
    match node:
        case ast.UnaryOp(operand=operand):
            return [operand]
        case ast.BinOp(left=left, right=right):
            return [left, right]
        case ast.BoolOp(values=values):
            return values
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            sides = zip(ops, comparators, strict=True)
            return [left, *(side for op, side in sides if isinstance(op, (*ORDERS, *EQUALITIES)))]
        case _:
            return []


def in_one_line(text: str) -> str:
    """The text with a space for each line end, so that every place is in one line.

    Raises:
        DataError: it has a comment, or a line end inside quotes.
    """

    def replaced(found: re.Match[str]) -> str:
        at = f"{FLAG} {printable(text)!r}: character {found.start() + 1}"
        if found["comment"]:
            raise DataError(f"{at} begins a comment, which is not allowed; a # in a name or text needs quotes")
        if found["constant"] and re.search("[\r\n]", found["constant"]):
            raise DataError(f"{at} begins a text with a line end in it; write it as \\n")
        return " " if found["end"] else found[0]

    return _LEXEMES.sub(replaced, text)
