"""The command line of the importers: all flags arrive, mistakes are refused, and ``--help`` loads no jax."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from clipa_eqx.errors import ConfigError
from conversion.weights.arguments import add_config_arguments, choices_of, import_options, import_parser
from conversion.weights.choices import Choices, ImportOptions


def test_all_flags_of_the_config_arrive():
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    assert choices_of(parser.parse_args([])) == Choices()
    argv = "--released m --image-pool tok --text-pool gap --image-position learned --image-heads 2 --text-heads 3"
    found = choices_of(parser.parse_args([*argv.split(), "--image-size", "84", "--profile", "flax"]))
    assert found == Choices(
        released="m",
        image_pool="tok",
        text_pool="gap",
        image_position="learned",
        image_heads=2,
        text_heads=3,
        image_size=84,
        profile="flax",
    )


def test_the_options_of_an_import_arrive():
    command = import_parser("x", "A command.", purpose="import", source="SRC")
    found = command.parser.parse_args(["import", "s", "d", "--vocab", "v.txt", "--overwrite", "--config", "c.json"])
    assert found.source == "s"
    choices = Choices(config=Path("c.json"))
    assert import_options(found) == ImportOptions(
        folder=Path("d"), choices=choices, vocab=Path("v.txt"), overwrite=True
    )


@pytest.mark.parametrize("flags", [["--preset", "L/14", "--config", "c.json"], ["--image-pool", "mean"], ["--over"]])
def test_contradictory_unknown_and_abbreviated_flags_are_refused(flags):
    command = import_parser("x", "A command.", purpose="import", source="SRC")
    with pytest.raises(ConfigError, match=flags[-2 if len(flags) > 1 else -1]):
        command.parser.parse_args(["import", "s", "d", *flags])


@pytest.mark.parametrize("command", ["flax_clipa", "t5x", "open_clip"])
def test_help_of_an_import_loads_no_jax(command):
    code = (
        f"import sys; from conversion.{command}.__main__ import main\n"
        "try: main(['import', '--help'])\n"
        "except SystemExit as stop: print(stop.code, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "--image-pool" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 False"
