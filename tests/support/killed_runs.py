"""Runs whose processes are killed, run out of disk or lose checkpoint files, again and again, until they end."""

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipa_eqx.cli import INTERRUPTED
from clipa_eqx.training.checkpoint_record import committed_steps, read_checkpoint_record
from clipa_eqx.training.flight import FLIGHT_NAME
from clipa_eqx.training.run_lock import RUN_LOCK, is_run_lock
from support.bucket_runs import committed_in, downloaded
from support.fork_server import Forked, ForkServer
from support.process_groups import free_port
from support.sample_lines import sample_lines
from support.train_processes import assert_same_metrics_and_model

LONGEST = {
    "start-up": 0.6,
    "preparation": 0.4,
    "lock": 0.02,
    "compile": 0.5,
    "claim": 0.05,
    "first state": 0.5,
    "restore": 0.4,
    "state": 0.2,
    "first batch": 0.1,
    "step": 0.05,
    "reporting": 0.01,
    "evaluation": 0.2,
    "saving": 0.05,
    "save": 0.1,
    "deleting": 0.02,
    "final model": 0.05,
    "page": 0.05,
    "end": 0.2,
}
"""Phases by the mark that begins them (``phase_marks``), with the longest delay before a fault, in seconds."""

REPEATED = ("step", "reporting", "evaluation", "saving", "save", "deleting")
"""Phases that a process may enter more than once."""

WORKING = ("step", "reporting", "saving", "save")
"""Phases in which workers have surely started."""

_MOST_PROCESSES = 4


@dataclass(frozen=True)
class Fault:
    """An end of a life in a phase of one of its processes.

    Attributes:
        kind: "SIGKILL", "SIGTERM", "worker" (SIGKILL of a process that reads its data), or "full disk".
        most: in phases that are repeated, it comes in one of the first so many.
    """

    kind: str
    phase: str
    process: int = 0
    most: int = 3


@dataclass
class Run:
    """A run in a folder, and what became of its lives.

    Attributes:
        flags: flags of each start.
        processes: number of processes of a life.
        devices: devices per process.
        faults: number of faults that ended a life, by kind and phase.
        damaged: files of checkpoints that were damaged.
        is_stored: whether lives share one compiled step, instead of compiling it from the cache.
        url: the address of the run folder if it is in a bucket; ``workdir`` gets a copy at the end.
        variables: environment of its processes.
    """

    server: ForkServer
    config: Path
    workdir: Path
    seed: int = 0
    flags: Sequence[str] = ()
    processes: int = 1
    devices: int = 1
    faults: Counter[Fault] = field(default_factory=Counter)
    damaged: list[Path] = field(default_factory=list)
    lives: int = 0
    is_stored: bool = True
    url: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)

    @property
    def checkpoints(self) -> Path:
        return self.workdir / "checkpoints"

    def log(self, process: int = 0) -> Path:
        """The log of the present life."""
        return self.workdir.with_name(f"{self.workdir.name}-{self.lives}-{process}.log")

    def marks(self, process: int = 0) -> Path:
        return Path(f"{self.log(process)}.phases")

    def samples(self, process: int = 0, *, life: int | None = None) -> Path:
        return self.workdir.with_name(f"{self.workdir.name}-{life or self.lives}-{process}.samples")

    def start(self, *, own: Sequence[Sequence[str]] | None = None, **variables: str) -> list[Forked]:
        """Start the next life; ``own`` are further flags of each process."""
        self.lives += 1
        meeting: list[str] = []
        settings: dict[str, object] = {"jax_num_cpu_devices": self.devices}
        if self.processes > 1:
            meeting = [
                *("--distributed", "--coordinator-address", f"localhost:{free_port()}"),
                *("--num-processes", str(self.processes)),
            ]
            settings["jax_cpu_collectives_implementation"] = "gloo"
        elif self.is_stored:
            variables = {"STEP": str(self.config.parent / "step"), **variables}
        return [
            self.server.start(
                [
                    *(str(self.config), "--workdir", self.url or str(self.workdir), *self.flags, *meeting),
                    *(("--process-index", str(number)) if meeting else ()),
                    *(own[number] if own else ()),
                ],
                log=self.log(number),
                settings=settings,
                **{
                    **self.variables,
                    "PHASES": str(self.marks(number)),
                    "SAMPLES": str(self.samples(number)),
                    **variables,
                },
            )
            for number in range(self.processes)
        ]

    def said(self) -> str:
        """The logs of all processes of the present life."""
        logs = [self.log(number) for number in range(self.processes)]
        return "\n\n".join(f"{log.name}\n{log.read_text() if log.exists() else ''}" for log in logs)

    def stop_after(self, steps: int) -> None:
        """Start or resume the run, and end it after so many steps; a save that has begun is finished."""
        before = self.newest()
        processes = self.start(STOP_AFTER=str(steps))
        assert [process.wait(300) for process in processes] == [3] * len(processes), self.said()
        self._check_start(before)

    def finish(self) -> None:
        """Start or resume the run and wait for its end."""
        before = self.newest()
        processes = self.start()
        assert [process.wait(300) for process in processes] == [0] * len(processes), self.said()
        self._check_start(before)

    def committed(self) -> list[int]:
        """The committed steps, in order."""
        return committed_steps(self.checkpoints) if self.url is None else committed_in(self.url)

    def newest(self) -> set[int]:
        """The steps that the next life may start after: that of the newest checkpoint that nothing happened to.

        Damage may change nothing that is read, so that a newer one may be taken too.
        """
        steps = self.committed()
        intact = [step for step in steps if not any(self._is_of(file, step) for file in self.damaged)]
        newest = max(intact, default=0)
        return {newest, *(step for step in steps if step > newest)}

    def _is_of(self, file: Path, step: int) -> bool:
        return file.is_relative_to(self.checkpoints / str(step))

    def _check_start(self, before: set[int]) -> None:
        """Check that no committed step was lost: the life that just ended began after the newest."""
        marks = self.marks()
        if marks.exists() and '"first batch"' in marks.read_text():
            starts = [step for step, ids in sample_lines(self.samples()) if ids is None]
            assert not starts or starts[-1] in before or self._is_unreported(), (starts[-1], before, self.said())

    def _is_unreported(self) -> bool:
        """Whether the life ended before it recorded where it started."""
        return '"step"' not in self.marks().read_text()

    def live(self, fault: Fault) -> bool:
        """Start or resume the run until a fault ends this life; False if the run ended before."""
        before = self.newest()
        full = {"FULL_IN": fault.phase, "ROOM": str(self.draw.randrange(30_000, 90_000))}
        processes = self.start(**(full if fault.kind == "full disk" else {}))
        victim = processes[fault.process]
        try:
            if fault.kind == "full disk":
                code = victim.wait(200)
                assert code in (0, 2), self.said()
                assert code == 0 or "error: " in self.said(), self.said()
                assert "Traceback" not in self.said(), self.said()
            elif fault.kind == "worker":
                self.wait_for(fault, processes)
                time.sleep(self.draw.uniform(0, LONGEST[fault.phase]))
                if workers := _workers(victim.pid):
                    os.kill(self.draw.choice(workers), signal.SIGKILL)
                code = victim.wait(200)
                assert code in (0, 2), self.said()
                assert code == 0 or "error: a worker process of the input died by SIGKILL" in self.said(), self.said()
            else:
                self.wait_for(fault, processes)
                time.sleep(self.draw.uniform(0, LONGEST[fault.phase]))
                victim.send_signal(getattr(signal, fault.kind))
                code = victim.wait(200)
                if fault.kind == "SIGKILL":
                    assert code in (0, -signal.SIGKILL), self.said()
                else:
                    # Before it can be saved, and while the program ends, the signal ends it at once.
                    assert code in (0, INTERRUPTED, -signal.SIGTERM), self.said()
            self._end_others(processes, fault, code)
        finally:
            for process in processes:
                process.kill()
                process.wait(60)
        self._check_start(before)
        if code == INTERRUPTED:
            said = self.log(fault.process).read_text()
            if "stopped before this start did a step" not in said:
                (step,) = re.findall(r"stopped after step (\d+) of", said)
                assert self.committed()[-1] == int(step), self.said()
        if code != 0:
            self.faults[fault] += 1
        return code != 0

    def _end_others(self, processes: Sequence[Forked], fault: Fault, code: int) -> None:
        """Wait for the other processes; those of a killed one are killed soon, as a scheduler does."""
        for number, process in enumerate(processes):
            if number != fault.process:
                if code in (0, INTERRUPTED):
                    assert process.wait(200) == code, self.said()
                else:
                    time.sleep(self.draw.uniform(0, 0.5))
                    process.kill()

    def wait_for(self, fault: Fault, processes: Sequence[Forked]) -> None:
        """Wait until the process of a fault enters its phase, up to three times, or ends."""
        if fault.phase == "start-up":
            return
        nth = self.draw.randint(1, fault.most) if fault.phase in REPEATED else 1
        marks, deadline = self.marks(fault.process), time.monotonic() + 200
        while not (marks.exists() and marks.read_text().count(f'"{fault.phase}"') >= nth):
            if processes[fault.process].poll() is not None:
                return
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.001)

    def damage(self) -> None:
        """Change a file of one of the last two checkpoints, if nothing happened to both, or of an unfinished one.

        Older ones may be deleted in part: a process was killed while it did that.
        """
        steps = committed_steps(self.checkpoints)[-2:]
        intact = [step for step in steps if not any(self._is_of(file, step) for file in self.damaged)]
        folders = [entry for entry in self.checkpoints.glob("*") if entry.is_dir() and not entry.name.isdigit()]
        if len(intact) > 1:
            folders.append(self.checkpoints / str(self.draw.choice(intact)))
        files = [file for folder in sorted(folders) for file in sorted(folder.rglob("*")) if file.is_file()]
        if not files:
            return
        file = self.draw.choice(files)
        content = bytearray(file.read_bytes())
        match self.draw.choice(("truncate", "flip", "delete")):
            case "truncate":
                file.write_bytes(content[: self.draw.randrange(len(content) + 1)])
            case "flip" if content:
                content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
                file.write_bytes(content)
            case _:
                file.unlink()
        self.damaged.append(file)

    def trained_on(self) -> dict[int, list[int]]:
        """The samples of each step that the final state has, in order: of each life, the steps before the next's start.

        What came after the checkpoint that the next life starts from is lost, and done again.
        """
        kept: dict[int, list[int]] = {}
        for life in range(1, self.lives + 1):
            found: dict[int, list[int]] = {}
            for process in range(_MOST_PROCESSES):
                for step, ids in sample_lines(self.samples(process, life=life)):
                    if ids is not None:
                        found[step] = found.get(step, []) + ids
                    elif process == 0:
                        kept = {done: ids_of for done, ids_of in kept.items() if done <= step}
                        assert sorted(kept) == list(range(1, step + 1)), (life, sorted(kept), step)
            kept |= found
        return kept

    def contributed(self) -> Counter[int]:
        """The multiset of these samples."""
        return Counter(one for ids in self.trained_on().values() for one in ids)

    def assert_is(self, whole: "Run", *, steps: int) -> None:
        """Check that this finished run is the uninterrupted one."""
        if self.url is not None:
            downloaded(self.url, self.workdir)
        assert_same_metrics_and_model(self.workdir, whole.workdir, steps=steps)
        assert checksums(self.workdir, steps) == checksums(whole.workdir, steps)
        assert self.trained_on() == whole.trained_on()
        assert self.contributed() == whole.contributed()
        assert self.contributed().total() == steps * len(whole.trained_on()[1])
        # A kill in the milliseconds in which the lock is written leaves a file that a start minutes later removes.
        left = {
            path.name for path in self.workdir.iterdir() if path.name == RUN_LOCK.name or not is_run_lock(path.name)
        }
        expected = {path.name for path in whole.workdir.iterdir()}
        assert left - {"damaged_checkpoints", FLIGHT_NAME} == expected, sorted(left ^ expected)
        assert self.damaged or "damaged_checkpoints" not in left


def _workers(process: int) -> list[int]:
    """The processes that read data for a process."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if parent == process and b"spawn_main" in command:
            found.append(int(entry.name))
    return found


def checksums(workdir: Path, step: int) -> dict[str, str]:
    """The recorded checksums of all leaves of a checkpoint; a resumed run has verified them."""
    found = read_checkpoint_record(workdir / "checkpoints" / str(step)).checksums
    assert found
    return dict(found)
