"""Two processes train as one with as many devices, and stop together when one of them gets a signal."""

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from support import tiny_runs
from support.paths import ROOT
from support.tiny_models import tiny_clip

from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.saved.adapters import load_adapters
from clipa_eqx.saved.model import load_model, save_model
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.trees import leaves_by_path

PROCESS = '''"""One of the processes that train together; the last of them gets a real SIGTERM in its first start."""
import logging
import os
import signal
import sys
import time
from pathlib import Path

import jax

process, processes, devices, port, folder, workdir, is_stopped = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(devices))
jax.config.update("jax_disable_most_optimizations", True)
if int(processes) > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
assert jax.device_count() == 4, jax.devices()

from support import tiny_runs
from support.tiny_models import tiny_clip_config
from clipa_eqx.sharding import MeshConfig
from clipa_eqx.training.loop import train
from clipa_eqx.training.compiled_step import compile_step
from clipa_eqx.training.profiling import ProfiledSteps
from clipa_eqx.training.stopping import Interrupted

logging.basicConfig(level=logging.INFO)
tiny_runs.folder = lambda: Path(folder)
config = tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC), mesh=MeshConfig(fsdp=2))
# more of the config


def compile_slow(*args):
    """Process 0 only hears of the signal. The notice takes up to seconds, steps take milliseconds: they wait for it."""
    step, calls = compile_step(*args), []

    def slowly(state, batch):
        calls.append(1)
        if len(calls) == 4 and int(process) == int(processes) - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2.0 if len(calls) >= 4 else 0.0)
        return step(state, batch)

    return slowly


try:
    compiler = compile_slow if is_stopped == "True" else compile_step
    train(config, Path(workdir), compiler=compiler, profile=ProfiledSteps(1, 2))
except Interrupted as stop:
    print(stop)
'''


def started(script, folder, workdir, *, processes, is_stopped=False):
    """Train with a script such as ``PROCESS``; returns the output of the process that gets no signal."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}"}
    running = [
        subprocess.Popen(
            [
                sys.executable,
                script,
                *map(str, (i, processes, 4 // processes, port, folder, workdir, is_stopped)),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        said = [process.communicate(timeout=400)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * processes, "\n\n".join(said)
    return said[0]


@pytest.mark.slow
def test_two_processes_train_restore_and_save_as_one_process_with_as_many_devices(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    records = tiny_runs.make_records(tiny_runs.RECORDS)  # every third of them with a caption that is too long
    records = (replace(r, captions=(" ".join(r.captions * (4 if i % 3 == 0 else 1)),)) for i, r in enumerate(records))
    write_records(records, tmp_path / "data/records")
    shutil.copy(tiny_runs.folder() / "vocab.txt", tmp_path / "data")

    start = partial(started, script, tmp_path / "data")
    one, two = tmp_path / "one", tmp_path / "two"
    start(one, processes=1)
    said = start(two, processes=2, is_stopped=True)
    assert "stopped after step" in said
    # Not at all if the run stops before both rates are measured, which depends on the machine.
    assert said.count("the input of process 0 of 2 makes") <= 1
    assert len(list((two / "profile").rglob("*.xplane.pb"))) == 1  # process 0 writes the trace
    stopped = [line["step"] for line in read_metrics(two / "metrics.jsonl")]
    assert stopped == list(range(1, len(stopped) + 1))
    assert 3 <= len(stopped) < 12
    assert not (two / "model").exists()
    start(two, processes=2)
    lines, expected = read_metrics(two / "metrics.jsonl"), read_metrics(one / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    for name in ("loss", "accuracy", "grad_norm", "param_norm/text", "truncated_fraction"):
        np.testing.assert_allclose([x[name] for x in lines], [x[name] for x in expected], rtol=1e-5, err_msg=name)
    assert len({line["truncated_fraction"] for line in lines}) > 1
    ours, theirs = (load_model(folder / "model").model for folder in (two, one))
    ours, theirs = leaves_by_path(ours), leaves_by_path(theirs)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        # Attention key biases have no gradient in exact arithmetic: Adam turns rounding noise into steps.
        if not path.endswith("attn/k/bias"):
            np.testing.assert_allclose(leaf, theirs[path], rtol=0, atol=1e-5, err_msg=path)


LORA = """
from clipa_eqx.surgery import LORA_FACTORS
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.surgery.operations import Lora

lora = Lora(rank=2, alpha=4.0, targets=("image/blocks/attn/(q|v)/weight", "text/blocks/mlp/fc_out/weight"))
init = InitConfig(source=str(Path(folder) / "model"), surgery=(lora,))
config = tiny_runs.run_config(mesh=MeshConfig(fsdp=2), trainable=(LORA_FACTORS,), init=init)
"""


@pytest.mark.slow
def test_two_processes_merge_factors_as_one_process_with_as_many_devices(tmp_path):
    script, data = tmp_path / "process.py", tmp_path / "data"
    script.write_text(PROCESS.replace("# more of the config\n", LORA))
    write_records(tiny_runs.make_records(tiny_runs.RECORDS), data / "records")
    shutil.copy(tiny_runs.folder() / "vocab.txt", data)
    config = tiny_runs.run_config()
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    save_model(data / "model", tiny_clip(), tokenizer=tokenizer, preprocess=config.eval_image, provenance={})
    one, two = tmp_path / "one", tmp_path / "two"
    started(script, data, one, processes=1)
    started(script, data, two, processes=2)
    load_adapters(two / "adapters", base=load_model(data / "model").model)
    before, ours, theirs = (leaves_by_path(load_model(folder / "model").model) for folder in (data, two, one))
    assert not np.array_equal(ours["image/blocks/attn/q/weight"], before["image/blocks/attn/q/weight"])
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[path], rtol=0, atol=1e-5, err_msg=path)
