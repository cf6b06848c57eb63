"""Train a config file. The same command resumes an interrupted run."""

import argparse
import json
import sys
from collections.abc import Sequence

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import INTERRUPTED, OK, end_now, run
from clipa_eqx.errors import ConfigError
from clipa_eqx.huge_pages import restart_with_huge_pages
from clipa_eqx.programs.distributed import add_distributed_flags, processes_of

EPILOG = """Any field of the config is a flag: --batch-size 64 --optim.peak-lr 4e-4 --data.sources.0.folder DIR.
`%(prog)s CONFIG.py --help-config` lists all of them. Run the same command again to resume an interrupted run.
Exit codes: 0 done, 2 a mistake in config, data or run folder, a device that is not there, too little memory or disk
space, 3 a score fell further than guard allows, 75 interrupted by SIGINT or SIGTERM and saved, 74 ended by the watchdog
because nothing moved (run the command again after both), 1 anything else."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or print a config; returns the exit code. Raises ClipaError for a mistake of the user."""
    parser = ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG.py", help="a Python file with `def config() -> ExperimentConfig`")
    parser.add_argument(
        "--workdir",
        metavar="RUN",
        help="run folder: checkpoints, metrics.jsonl and model go there; a local path, gs://bucket/run (needs gcsfs) "
        "or s3://bucket/run (needs s3fs)",
    )
    parser.add_argument("--init-from", metavar="RUN_OR_MODEL", help="start from these weights (sets init.source)")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config as JSON and exit")
    parser.add_argument("--help-config", action="store_true", help="list the flags of every config field and exit")
    parser.add_argument(
        "--profile",
        metavar="START:STOP",
        help="write a trace of these steps, both included, to the folder profile of the run folder",
    )
    parser.add_argument(
        "--allow-recompilation",
        action="store_true",
        help="warn instead of ending the run if the loop compiles something after its first steps",
    )
    add_distributed_flags(parser)
    arguments, overrides = parser.parse_known_args(argv)

    # The work needs jax; --help does not.
    from clipa_eqx.programs import training_run

    config = training_run.resolve_config(
        arguments.config,
        ["--help"] if arguments.help_config else overrides,
        init_from=arguments.init_from,
        program=f"{parser.prog} {arguments.config}",
        program_flags=parser.flags,
    )
    if arguments.print_config:
        print(json.dumps(training_run.to_json(config), indent=1))
        return OK
    if arguments.workdir is None:
        raise ConfigError("--workdir is missing; give the folder for this run's checkpoints, metrics and model")
    return training_run.start(
        config,
        arguments.workdir,
        processes=processes_of(arguments),
        profile=arguments.profile,
        allow_recompilation=arguments.allow_recompilation,
    )


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code.

    A failure of one of several processes ends this one at once: JAX would first wait for the others, which also end.
    """
    code = run(main)
    if code not in (OK, INTERRUPTED) and "--distributed" in sys.argv:
        end_now(code)
    return code


def command() -> int:
    """``program`` as the first thing that a process does: it may start again, with other settings of the allocator."""
    restart_with_huge_pages()
    return program()
