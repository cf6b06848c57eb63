"""Train a config file, or go on training it: the same command resumes an interrupted run."""

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path

from clipa_eqx.cli import FAILED, OK, run, set_up_logging

EPILOG = """Any field of the config is a flag: --batch-size 64 --optim.peak-lr 4e-4 --data.sources.0.folder DIR.
`train.py CONFIG.py --help-config` lists them all. The same command goes on with an interrupted run.
Exit codes: 0 done, 2 a mistake in config, data or work folder, 1 anything else (interrupted runs too)."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", metavar="CONFIG.py", help="a Python file with `def config() -> ExperimentConfig`")
    parser.add_argument("--workdir", type=Path, help="folder of this run: checkpoints, metrics.jsonl, model")
    parser.add_argument("--init-from", metavar="RUN_OR_ARTEFACT", help="start from these weights (sets init.source)")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config as JSON and exit")
    parser.add_argument("--help-config", action="store_true", help="list the flags of every config field and exit")
    parser.add_argument(
        "--distributed", action="store_true", help="call jax.distributed.initialize() first (pods find their hosts)"
    )
    arguments, rest = parser.parse_known_args()

    from clipa_eqx.config_files import apply_overrides, load_config
    from clipa_eqx.errors import ConfigError
    from clipa_eqx.experiment import InitConfig
    from clipa_eqx.json_config import to_json

    config = load_config(arguments.config)
    if arguments.help_config:
        apply_overrides(config, ["--help"], program=f"train.py {arguments.config}")
    if arguments.init_from is not None:
        # First, so that --init.optimizer and its like have something to change where the file names no source.
        init = config.init or InitConfig(source=arguments.init_from)
        config = dataclasses.replace(config, init=dataclasses.replace(init, source=arguments.init_from))
    config = apply_overrides(config, rest, program=f"train.py {arguments.config}")
    if arguments.print_config:
        print(json.dumps(to_json(config), indent=1))
        return OK
    if arguments.workdir is None:
        raise ConfigError("--workdir is missing; give the folder for this run's checkpoints, metrics and model")

    import jax

    if arguments.distributed:
        jax.distributed.initialize()
        set_up_logging(process_index=jax.process_index())
    from clipa_eqx.training.loop import train
    from clipa_eqx.training.stopping import Interrupted

    try:
        result = train(config, arguments.workdir)
    except Interrupted as stop:
        logging.getLogger(__name__).warning("%s", stop)
        return FAILED
    logging.getLogger(__name__).info("done: %d steps, model in %s", result.steps, result.model_folder)
    return OK


if __name__ == "__main__":
    sys.exit(run(main))
