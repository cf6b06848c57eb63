"""A mistake in the arguments of a program is one line, in which the likely flag and the help are named."""

import pytest

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import USAGE, run
from clipa_eqx.errors import ConfigError
from clipa_eqx.similar_flags import similar


@pytest.fixture
def parser():
    made = ArgumentParser(prog="clipa-test")
    made.add_argument("--verbose", "-v", action="store_true")
    tasks = made.add_subparsers(dest="task", required=True)
    one = tasks.add_parser("one", help="x")
    one.add_argument("source")
    one.add_argument("--caption-column")
    one.add_argument("--workers", type=int, choices=(1, 2))
    one.add_argument("--both", nargs=2)
    one.add_argument("--column", action="append")
    for name in ("two", "three"):
        tasks.add_parser(name, help="x").add_argument("--folder")
    tasks.choices["three"].add_argument("--deep", action="store_true")
    return made


def test_a_required_flag_that_was_misspelled_is_named():
    made = ArgumentParser()
    made.add_argument("--data", required=True)
    made.add_argument("--out", required=True)
    with pytest.raises(ConfigError, match=r"are required: --data, --out; for --dta, did you mean --data\?"):
        made.parse_args(["--dta=x", "--suite", "retrieval"])
    with pytest.raises(ConfigError, match="are required: --data; --help"):
        made.parse_args(["--out", "x", "--oot", "y"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: task"),
        (["one"], "the following arguments are required: source"),
        (["four"], "argument task: invalid choice: 'four' (choose from"),
        (["one", "s", "--workers", "x"], "argument --workers: invalid int value: 'x'"),
        (["one", "s", "--workers", "3"], "argument --workers: invalid choice: 3"),
        (["one", "s", "--caption_colum", "x"], "for --caption_colum, did you mean --caption-column?"),
        (["one", "s", "--captions-column=x"], "for --captions-column, did you mean --caption-column?"),
        (["one", "s", "--work", "2"], "for --work, did you mean --workers?"),
        (["one", "s", "t"], "unrecognized arguments: t; --column may be repeated, with one value each time;"),
        (["one", "s", "--workers", "1", "--workers", "2"], "--workers is given twice; give it once;"),
        (["one", "--workers=1", "s", "--workers=1"], "--workers is given twice; give it once;"),
        (["--verbose", "-v", "one", "s"], "-v is given twice; give it once;"),
        (["one", "s", "--both", "1", "2", "--both", "3", "4"], "--both is given twice; give it once, with all its"),
        (["one", "s", "--folder", "x"], "unrecognized arguments: --folder x; only two, three take --folder;"),
        (["two", "--deep"], "unrecognized arguments: --deep; only three takes --deep;"),
        (["one", "s", "--xyzzy"], "unrecognized arguments: --xyzzy;"),
    ],
)
def test_a_mistake_is_one_line(parser, arguments, message, capsys, logging_as_before):
    with pytest.raises(ConfigError) as caught:
        parser.parse_args(arguments)
    assert message in str(caught.value)
    assert str(caught.value).endswith(" --help lists the arguments")
    assert run(lambda: parser.parse_args(arguments)) == USAGE
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"error: {caught.value}\n")


def test_the_flags_of_subcommands_are_known(parser):
    assert parser.flags == (
        "--help",
        "--verbose",
        "--caption-column",
        "--workers",
        "--both",
        "--column",
        "--folder",
        "--deep",
    )


def test_a_parser_that_is_used_again_knows_no_earlier_flags(parser):
    for workers in (1, 2):
        found = parser.parse_args(["-v", "one", "s", "--workers", str(workers), "--column", "a", "--column", "b"])
        assert (found.verbose, found.workers, found.column) == (True, workers, ["a", "b"])
    assert parser.parse_args(["one", "s"]).verbose is False


def test_help_is_printed_and_no_mistake(parser, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["one", "--help"])
    assert stop.value.code == 0
    assert "--caption-column" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "known", "expected"),
    [
        ("--optim.peak-learning-rate", ["--optim.lr-factors", "--optim.peak-lr"], ["--optim.peak-lr"]),
        ("--learning-rate", ["--optim.peak-lr", "--seed"], ["--optim.peak-lr"]),
        ("--work_dir", ["--workdir", "--data.stream.workers"], ["--workdir"]),
        ("--steps", ["--optim.warmup.steps", "--duration.steps"], ["--duration.steps", "--optim.warmup.steps"]),
        ("--xyzzy", ["--workdir"], []),
        ("--x", [], []),
    ],
)
def test_a_flag_is_like_another_by_spelling_words_or_initials(wrong, known, expected):
    assert similar(wrong, known) == expected
