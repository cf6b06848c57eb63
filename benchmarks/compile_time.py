"""Seconds of compiling a recipe's step for a TPU slice: blocks in a loop, and the same blocks one after the other.

Run `python benchmarks/compile_time.py configs/b16_64px_t32.py v5e:16x16` with the extra `plan`. The twin is the same
step with `unroll=True` in the scan over blocks. Processor time counts, because it depends little on other programs.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import run
from clipa_eqx.planning.slices import check_compiler, parse_topology, set_environment


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("config", metavar="CONFIG.py")
    parser.add_argument("topology", metavar="v5e:16x16")
    arguments = parser.parse_args(argv)
    parse_topology(arguments.topology)
    check_compiler()
    set_environment()
    import jax

    from clipa_eqx.config_files import load_config
    from clipa_eqx.device_memory import GIB
    from clipa_eqx.planning.compiled import compile_for_slice, prepare
    from clipa_eqx.planning.slices import open_slice
    from clipa_eqx.programs.planned_run import RECORDS

    prepared = prepare(load_config(Path(arguments.config)), open_slice(arguments.topology), records=RECORDS)
    scan: Any = jax.lax.scan
    seconds: list[float] = []
    for name, is_unrolled in (("in a loop", False), ("one after the other", True)):
        made = functools.partial(scan, unroll=True) if is_unrolled else scan
        with mock.patch.object(jax.lax, "scan", made):
            compiled = compile_for_slice(prepared)
        size = "refused" if compiled.memory is None else f"{compiled.memory.peak / GIB:.2f} GiB at the peak"
        print(f"{name}: {compiled.cpu_seconds:.0f} s of processor time, {compiled.seconds:.0f} s, {size}", flush=True)
        seconds.append(compiled.cpu_seconds)
    print(f"the loop takes {seconds[0] / seconds[1]:.2f} of the time")


if __name__ == "__main__":
    sys.exit(run(main))
