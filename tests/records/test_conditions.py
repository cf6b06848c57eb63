"""Conditions by themselves: results for values of each kind, with missing ones, and everything that is refused."""

import itertools
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.errors import DataError
from conversion.records import condition_values, conditions
from conversion.records.condition_values import check_conditions, evaluate
from conversion.records.conditions import condition_columns, parse_conditions


def results(expression, *rows, first=None):
    """The result of an expression for each row: True, False or None."""
    (condition,) = parse_conditions((expression,))
    (kinds,) = check_conditions([condition], rows if first is None else first, where="the first rows")
    return [outcome.is_true for outcome in evaluate(condition, rows, kinds=kinds)]


VALUES = [{"a": 0.2}, {"a": 0.3}, {"a": 1}, {"a": None}, {}]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a > 0.3", [False, False, True, None, None]),
        ("a >= 0.3", [False, True, True, None, None]),
        ("0.3 < a", [False, False, True, None, None]),
        ("a == 1", [False, False, True, None, None]),
        ("a != 1", [True, True, False, None, None]),
        ("not a == 1", [True, True, False, None, None]),
        ("0.2 <= a < 1", [True, True, False, None, None]),
        ("a is None", [False, False, False, True, True]),
        ("a is not None", [True, True, True, False, False]),
        ("a < 0.25 or a is None", [True, False, False, True, True]),
        ("a > 0.25 and a is None", [False, False, False, None, None]),  # what is missing may be above 0.25
        ("a in [0.2, 1]", [True, False, True, None, None]),
        ("a not in (0.2, 1)", [False, True, False, None, None]),
        ("a in {1}", [False, False, True, None, None]),
        ("-a < -0.25", [False, True, True, None, None]),
        ("2 * a - 1 >= 1", [False, False, True, None, None]),
        ("(a + 1) / 2 > 0.6", [False, True, True, None, None]),
        ("a > 2 * 128", [False, False, False, None, None]),
        ("col('a') > 0.3", [False, False, True, None, None]),
    ],
)
def test_numbers_are_compared_and_a_missing_one_decides_nothing(expression, expected):
    assert results(expression, *VALUES) == expected


def test_texts_and_truth_values_are_compared_too():
    rows = [{"t": "en", "b": True}, {"t": "EN", "b": 0}, {"t": "", "b": None}]
    assert results("t in ['en', 'de']", *rows) == [True, False, False]
    assert results("t < 'a'", *rows) == [False, True, True]
    assert results("b", *rows) == [True, False, None]
    assert results("not b", *rows) == [False, True, None]
    assert results("b == True and t == 'en'", *rows) == [True, False, False]
    assert results("(t == 'en') == b", *rows) == [True, True, None]


def test_a_fraction_of_nothing_and_sums_of_infinite_numbers_are_no_values():
    rows = [{"w": 6, "h": 3}, {"w": 6, "h": 0}, {"w": 0, "h": 0}, {"w": 1e308, "h": 1e-300}]
    assert results("w / h == 2", *rows) == [True, None, None, False]
    assert results("w / h > 1e300", *rows) == [False, None, None, True]
    assert results("w / h - w / h == 0", *rows) == [True, None, None, None]
    assert results("w / h > 1.5", {"w": 7, "h": 4}) == [True]  # also of whole numbers


def test_columns_that_are_only_compared_with_each_other_are_of_the_kind_of_the_first_rows():
    assert results("a < b", {"a": 9, "b": 10}, {"a": "9", "b": 10}) == [True, True]
    assert results("a < b", {"a": "x9", "b": "x10"}, {"a": None, "b": "x"}) == [False, None]
    assert results("a == b and b == c", {"a": "x", "b": "x", "c": "x"}) == [True]
    assert results("a < b", {"a": "x", "b": 2}, first=[{"a": None}]) == [None]
    assert results("a == b and c == d and b == c and d == 'x'", dict.fromkeys("abcd", "x")) == [True]


def test_texts_that_are_numbers_count_as_numbers_where_a_number_is_needed():
    rows = [{"a": text} for text in ("12", "0012", "+1.2e1", "12.", " 12", "12 px", "", "nan", "1_2", "0x0c", "\u0661")]
    assert results("a == 12", *rows) == [True] * 4 + [None] * 7
    rows = [{"a": value} for value in (b"\xff", [1], True)]
    assert results("a == 1", *rows, first=[{"a": 1}]) == [None] * 3


def test_a_name_that_python_would_normalize_is_a_column_in_quotes():
    assert results("col('\u00b5') > 1", {"\u00b5": 2, "\u03bc": 0}) == [True]
    assert results("\u03bc > 1", {"\u00b5": 2, "\u03bc": 0}) == [False]


def test_texts_with_halves_of_surrogate_pairs_decide_nothing():
    assert results("a != 'x'", {"a": "y"}, {"a": "\ud800"}) == [True, None]


def test_a_negative_zero_is_zero_also_in_lists():
    rows = [{"z": -0.0}, {"z": 0.0}, {"z": 0}, {"z": 1}, {"z": None}]
    for expression in ("z == 0", "z == -0.0", "z in [0]", "z in [-0.0, 2]", "-z in [0]", "not z not in [0]"):
        assert results(expression, *rows) == [True, True, True, False, None], expression


def test_long_digits_are_read_in_one_pass():
    wrong = ["9" * 20_000 + "x", "9" * 20_000]
    assert results("a > 0", *({"a": text} for text in ["0." + "3" * 900, "9" * 900, *wrong])) == [True] + [None] * 3


def test_whole_numbers_that_are_not_exact_decide_nothing():
    assert results("a > 0", {"a": 2**53}, {"a": 2**53 + 1}, {"a": -(2**60)}, {"a": str(2**60)}) == [True] + [None] * 3


def counted_calls(monkeypatch, module):
    """Let the function that every step calls fail before a test can take long."""
    real, count = module.column_of, itertools.count()

    def counted(node):
        assert next(count) < 20_000
        return real(node)

    monkeypatch.setattr(module, "column_of", counted)


def test_comparisons_in_one_another_are_checked_and_evaluated_once(monkeypatch):
    counted_calls(monkeypatch, conditions)
    counted_calls(monkeypatch, condition_values)
    count = 100
    for before, after in (("(", ") == True"), ("True == (", ") == True")):
        assert results(before * count + "a > 1" + after * count, {"a": 1}, {"a": 2}) == [False, True]
    assert results("not " * 490 + "a", {"a": True}) == [True]


numbers = st.none() | st.integers(-3, 3) | st.sampled_from([0.5, -1.5])
leaves = st.sampled_from(["a", "b", "c", "1", "0.5"])
sums = st.recursive(leaves, lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner))
comparisons = st.builds("{} {} {}".format, sums, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), st.just("a"))
comparisons |= st.sampled_from(["a is None", "b is not None", "c in [1, 0.5]", "c not in [2]"])
expressions = st.recursive(
    comparisons,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner)
        | st.builds("not ({})".format, inner)
    ),
    max_leaves=4,
)


def by_hand(expression, row):
    """The result by Python's own rules, with three truth values: the set of what all numbers could give."""
    import ast

    def value(node):
        match node:
            case ast.Name(id=name):
                return row[name]
            case ast.Constant(value=constant):
                return constant
            case ast.List(elts=items):
                return [value(item) for item in items]
            case ast.BinOp(left=left, op=op, right=right):
                a, b = value(left), value(right)
                if a is None or b is None or (isinstance(op, ast.Div) and b == 0):
                    return None
                return {ast.Add: a + b, ast.Sub: a - b, ast.Mult: a * b}.get(type(op), None if b == 0 else a / b)
            case ast.UnaryOp(operand=operand):
                found = value(operand)
                return None if found is None else not found
            case ast.BoolOp(op=op, values=values):
                found = [value(one) for one in values]
                decisive = isinstance(op, ast.Or)
                return decisive if decisive in found else None if None in found else not decisive
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                a, b = value(left), value(right)
                if isinstance(op, ast.Is | ast.IsNot):
                    return (a is None) == isinstance(op, ast.Is)
                if a is None or b is None:
                    return None
                if isinstance(op, ast.In | ast.NotIn):
                    return (a in b) == isinstance(op, ast.In)
                return {
                    ast.Lt: a < b,
                    ast.LtE: a <= b,
                    ast.Gt: a > b,
                    ast.GtE: a >= b,
                    ast.Eq: a == b,
                    ast.NotEq: a != b,
                }[type(op)]
            case _:
                raise AssertionError(ast.dump(node))

    return value(ast.parse(expression, mode="eval").body)


@settings(max_examples=80, deadline=None)
@given(expressions, st.lists(st.fixed_dictionaries({"a": numbers, "b": numbers, "c": numbers}), max_size=5))
def test_any_condition_gives_what_python_gives_with_a_third_truth_value(expression, rows):
    columns = re.findall("[abc](?![a-z])", expression)
    if columns:
        assert results(expression, *rows) == [by_hand(expression, row) for row in rows]


REFUSED = {
    "": "needs an expression of 1 to 2,000 characters",
    "a >": r"'a >' is no expression: invalid syntax",
    "a > > b": r"'a > > b' is no expression: invalid syntax at character 5",
    "class > 1": r"is no expression: invalid syntax.*is written as col\('its name'\)",
    "(" * 300 + "a" + ")" * 300: "is no expression: too many nested parentheses",
    "a\0": "is no expression",
    "a == '\udcff'": "is no expression",
    "a > 1 # high\nand b > 2": r"'a > 1 # high\\nand b > 2': character 7 begins a comment, which is not allowed",
    "a > 1\n  and b > '\u00e9' + 1": r"'\u00e9'\" \(character 17\) is a text, expected a number",
    "t == 'a\nb'": "character 6 begins a text with a line end in it|unterminated string",
    't == """a\rb"""': r"character 6 begins a text with a line end in it; write it as \\n",
    "t == 'a\nb": "unterminated string",
    "a > 1; b": "is no expression: invalid syntax",
    "f(a) > 1": r"'f\(a\)' \(character 1\) is not allowed; allowed are columns",
    "__import__('os')": r"is not allowed; allowed are columns, col\('any name'\), numbers",
    "1 < a.b": r"'a\.b' \(character 5\) is an attribute; write the column as col\('its name'\)",
    "a[0] > 1": r"'a\[0\]' \(character 1\) is not allowed",
    "'\u00e9' == a and a[0]": r"'a\[0\]' \(character 14\) is not allowed",
    "col(a) > 1": r"'col\(a\)' \(character 1\) must be col\('name'\) with one text",
    "col('a', 'b') > 1": "must be col",
    "[x for x in a]": "is not allowed",
    "(lambda: 1)()": "is not allowed",
    "a if b else c": "is not allowed",
    "(a := 1) > 0": "is not allowed",
    "f'{a}' == 'x'": "is not allowed",
    "a ** 2 > 1": "is not allowed",
    "a % 2 == 1": "is not allowed",
    "+a > 1": "is not allowed",
    "~a": "is not allowed",
    "a & b": "is not allowed",
    "a == b'x'": "is not allowed",
    "a == ...": "is not allowed",
    "a == 1j": "is not allowed",
    "a > 9007199254740993": "beyond 2.53, where not every whole number is exact; choose ids by --subset",
    "a in [1, " + "9" * 400 + "]": "beyond 2.53, where not every whole number is exact",
    "a not in [-" + "9" * 400 + "]": "beyond 2.53, where not every whole number is exact",
    "9" * 400 + " < " + "8" * 400 + " < a": "beyond 2.53, where not every whole number is exact",
    "a in [-'x']": "is a text, expected a number",
    "a in [not b]": "must be a number or text in quotes",
    r"a == '\ud800'": r"'\\\\ud800'\" \(character 6\) is no Unicode text",
    r"a in ['x', '\udc80']": "is no Unicode text",
    r"col('\ud800') == 'x'": "is no Unicode text",
    "1 < \u00b5": r"'\u00b5' \(character 5\) is read as '\u03bc', .*; write col\('\u00b5'\)",
    "a == None": r"'None' \(character 6\) is compared; a missing value is found by `is None`",
    "a in [1, None]": "is compared; a missing value",
    "a is 1": "`is` and `is not` are for a column and None; use == or !=",
    "1 is None": "`is` and `is not` are for a column and None",
    "a + 1": "'a \\+ 1' is a number, expected a condition such as a comparison",
    "'x'": "is a text, expected a condition",
    "True": "uses no column",
    "1 < 2 and a > 1": "compares two constants",
    "1 in [1]": "is a constant, expected a column before `in`",
    "a in 'abc'": r"must be a list such as \['en', 'de'\]",
    "a in []": "must be a list such as",
    "a in b": "must be a list such as",
    "a in [b]": "must be a number or text in quotes",
    "a in [1, 'x']": "holds values of several kinds",
    "a > 'x' + 1": r"'x'\" \(character 5\) is a text, expected a number",
    "a > 1 and a == 'x'": "is a text, expected a number as 'a' is",
    "a == b and a > 1 and b == 'x'": "uses the column 'b' both for texts and for numbers|both for",
    "a < True": "has no order: truth values are equal or not",
    "a > 1 and 5": "'5' \\(character 11\\) is a number, expected a condition",
    "a > b > 'x' and b > 1": "is a number, expected a text as 'b' is",
    "a and a > 1": "uses the column 'a' both for truth values and for numbers|is a number, expected",
}


@pytest.mark.parametrize("expression", REFUSED)
def test_anything_else_is_refused_with_its_place(expression):
    with pytest.raises(DataError) as caught:
        parse_conditions((expression,))
    assert re.search(REFUSED[expression], str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_line_ends_are_spaces_and_texts_stay_as_they_are():
    assert results("a > 1\nand\r\na < 3 or \\\r a == '#'".replace("'#'", "9"), {"a": 2}, {"a": 9}) == [True, True]
    odd = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
    for text in odd:
        assert results(f"t == 'x{text}y'", {"t": f"x{text}y"}, {"t": "x y"}) == [True, False], repr(text)
    assert results("""t == '#"' or t == "it's # 1" or t == r'\\n' """, {"t": '#"'}, {"t": "it's # 1"}) == [True, True]
    assert results("'''it's''' == t or t == '' or t == 'a\\'#'", {"t": "it's"}, {"t": "a'#"}) == [True, True]


def test_columns_are_found_in_order():
    assert condition_columns(("b > 1 and col('a b') is None", "a > b")) == ("b", "a b", "a")
    assert condition_columns((" a\n > 1 ",)) == ("a",)


def test_whole_numbers_beyond_the_exact_ones_are_told_from_values_of_another_kind():
    for value in (2**60, str(2**60)):
        message = f"column 'a' holds .* such as '?{2**60}'? in here, beyond 2.53, where not every .*; choose ids by"
        with pytest.raises(DataError, match=message):
            check_conditions(parse_conditions(("a > 1",)), [{"a": value}], where="here")
        (_, outcome) = evaluate(parse_conditions(("a > 1",))[0], [{"a": 1}, {"a": value}], kinds={})
        assert outcome.wrong == "a is beyond 2^53, where not every whole number is exact"


def test_truth_values_may_be_fractions_as_pandas_writes_them_beside_missing_ones():
    rows = [{"a": value} for value in (1.0, 0.0, math.nan, 0.5, 2)]
    assert results("a", *rows) == [True, False, None, None, None]
    assert results("not a == True", *rows) == [False, True, None, None, None]


def test_the_first_rows_show_values_of_another_kind(tmp_path):
    cases = {
        "a > 1": ("x", "column 'a' holds texts such as 'x' in here, expected numbers; only texts that are decimal"),
        "a == 'x'": (1, "holds numbers such as 1 in here, expected texts; compare it with a number, without quotes"),
        "a >= 1": (True, "holds truth values such as True in here, expected numbers; compare it with True or False"),
        "a": ("yes", r"holds texts such as 'yes' in here, expected truth values; compare it with a text in quotes"),
        "a < 2": (b"\xff\xd8", "holds bytes such as .* expected numbers; it is of no use here"),
    }
    for expression, (value, message) in cases.items():
        with pytest.raises(DataError, match=re.escape(f"--where {expression!r}: ") + f".*{message}"):
            check_conditions(parse_conditions((expression,)), [{"a": None}, {"a": value}], where="here")
        check_conditions(parse_conditions((expression,)), [{"a": None}, {}, {"a": math.nan}], where="here")
