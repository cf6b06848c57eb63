"""Reports of a run: metric log, progress bar, page, trackers, and the error for non-finite numbers."""

import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import numpy as np

from clipa_eqx.commands import command_line
from clipa_eqx.data.stream import check_substituted
from clipa_eqx.durations import RunLength, is_time
from clipa_eqx.errors import NonFiniteError
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.optim import learning_rates
from clipa_eqx.progress import progress_bar
from clipa_eqx.saved.kinds import METRICS_NAME
from clipa_eqx.surgery.operations import flags_after
from clipa_eqx.tokenizer.unknown import CAPTION_ADVICE, PACKAGED, warn_of_unknown
from clipa_eqx.training.device_batches import COUNTED
from clipa_eqx.training.flight import FlightRecord
from clipa_eqx.training.live_report import LiveReport
from clipa_eqx.training.metrics import MetricLog, Throughput, is_finite, read_metrics, to_host
from clipa_eqx.training.non_finite import MOST_SKIPS, SKIPPED, too_many_skips
from clipa_eqx.training.tensorboard import FOLDER_NAME, EventLog
from clipa_eqx.training.trackers import open_wandb

_log = logging.getLogger(__name__)


class StepNumbers(NamedTuple):
    """The numbers of one step.

    Attributes:
        metrics: on the devices, or read already; they include the sums of the columns ``COUNTED`` of the batch.
        sample_id: the records of this process's rows.
    """

    step: int
    metrics: Mapping[str, Any]
    sample_id: np.ndarray


class Reports:
    """Reports of the steps of a run. Process 0 writes, all processes check. Use it in a ``with`` block."""

    def __init__(
        self,
        config: ExperimentConfig,
        workdir: Path,
        run: RunLength,
        *,
        start: int,
        devices: int,
        before: Mapping[str, Any] | None = None,
        logged: int | None = None,
        flight: FlightRecord | None = None,
        page: Callable[[Sequence[Mapping[str, Any]]], LiveReport] | None = None,
    ) -> None:
        """Open the log of a run that starts after step ``start``, on so many devices over all processes.

        Args:
            before: ``about`` of the checkpoint that the run resumes from.
            logged: the last step whose line may be in the log; ``start`` by default.
            flight: gets the numbers of each step.
            page: opens the report in the run folder, from the lines of the metric log so far; called by process 0.
        """
        # A run that took over the optimizer of another one starts late.
        self._first = None if before else start + 1
        before = before or {}
        self._config, self._run, self._workdir = config, run, workdir
        self._is_writer = jax.process_index() == 0
        self.bad_records: int = int(before.get("bad_records", 0))
        self.skipped_steps: int = int(before.get("skipped_steps", 0))
        self._skips_in_a_row: int = int(before.get("skips_in_a_row", 0))
        self._last_logged = before.get("last_logged")
        self.last: dict[str, Any] = {}
        self._flight = flight
        logged = start if logged is None else logged
        self._log = MetricLog(workdir / METRICS_NAME, step=logged, last=self._last_logged) if self._is_writer else None
        self._track: Callable[[int, Mapping[str, Any]], None] | None = None
        if self._is_writer and config.wandb is not None:
            self._track = open_wandb(config.wandb, workdir)
        self._events: EventLog | None = None
        if self._is_writer and config.tensorboard:
            self._events = EventLog(workdir / FOLDER_NAME, read_metrics(workdir / METRICS_NAME))
        self._page: LiveReport | None = None
        if self._is_writer and page is not None:
            self._page = page(read_metrics(workdir / METRICS_NAME))
        self._bar: Any = progress_bar(
            total=run.total_steps, unit="step", initial=start, delay=0.0, disable=not self._is_writer
        )
        # Last: its clock runs from here, and opening the reports is no time of training.
        self.throughput: Throughput = Throughput(batch_size=config.batch_size, devices=devices, step=start)

    def is_logged(self, step: int) -> bool:
        """Steps 1 and 2, every ``log_every_steps``, and the last, as the reference (docs/reference.md F10).

        Also the first step of the run, so that its log says where it began.
        """
        return step in (2, self._first) or is_time(
            step, every_steps=self._config.log_every_steps, total_steps=self._run.total_steps
        )

    def about(self) -> dict[str, Any]:
        """The entries of a checkpoint's ``about`` that continue the reports of a resumed run."""
        return {
            "bad_records": self.bad_records,
            "last_logged": self._last_logged,
            "skipped_steps": self.skipped_steps,
            "skips_in_a_row": self._skips_in_a_row,
        }

    def check(self, numbers: StepNumbers, *, last_checkpoint: Callable[[], str | None]) -> dict[str, Any]:
        """Wait for a step's numbers and check them; returns them as plain numbers and lists.

        Raises:
            NonFiniteError: loss, gradient or update is NaN or infinite, and the step did not skip its update; names
                step, samples and last checkpoint.
        """
        with jax.profiler.TraceAnnotation("numbers"):
            self.throughput.wait_for(numbers.metrics)
            values = to_host(numbers.metrics)
        if self._flight is not None:
            self._flight.finished(numbers.step, values)
        if not values.get(SKIPPED) and not is_finite(values):
            raise NonFiniteError(self._alarm(numbers, values, last_checkpoint()))
        return values

    def finish(
        self, numbers: StepNumbers, *, last_checkpoint: Callable[[], str | None], extra: Mapping[str, Any] | None = None
    ) -> None:
        """Wait for a step's numbers, check them, and write them if the step is logged or has ``extra``.

        Raises:
            NonFiniteError: as ``check``, or too many steps in a row were skipped.
            DataError: too many records of the step were bad; on all processes at the same step.
        """
        step, values = numbers.step, self.check(numbers, last_checkpoint=last_checkpoint)
        # The optimizer counts the updates that it made, which decides the learning rate.
        updates = step - 1 - self.skipped_steps
        self._count_skip(numbers, values, last_checkpoint=last_checkpoint)
        truncated, substituted, pieces, unknown = (int(values.pop(name)) for name in COUNTED)
        check_substituted(substituted, step=step, batch_size=self._config.batch_size)
        self.bad_records += substituted
        self._bar.update(step - self._bar.n)
        if not (self.is_logged(step) or extra):
            return
        config = self._config
        rates = learning_rates(config.optim, updates, self._run)
        samples = step * config.batch_size
        line = {
            **values,
            **({"lr": float(*rates.values())} if len(rates) == 1 else {}),
            **({f"lr/{pattern}": float(rate) for pattern, rate in rates.items()} if len(rates) > 1 else {}),
            "examples_seen": samples,
            "epoch": self._run.epochs(step),
            "truncated_fraction": truncated / config.batch_size,
            "unknown_fraction": unknown / max(1, pieces),
            **({"bad_records": self.bad_records} if config.data.on_bad_record == "substitute" else {}),
            **({"skipped_steps": self.skipped_steps} if config.on_non_finite == "skip" else {}),
            **(extra or {}),
            **self.throughput.rates(step),
            "time": time.time(),
        }
        if self._is_writer and not self.last:
            vocab = config.data.vocab
            warn_of_unknown(
                f"captions of step {step}",
                unknown=unknown,
                pieces=pieces,
                vocabulary=PACKAGED if vocab is None else f"the vocabulary {vocab}",
                advice=CAPTION_ADVICE,
            )
        self.last = {"step": step, **line}
        self._last_logged = step
        if self._log is not None:
            self._log.write(step, line)
        if self._track is not None:
            self._track(step, line)
        if self._events is not None:
            self._events.write(step, line)
        if self._page is not None:
            self._page.add(step, line)
        shown = {"loss": values["loss"], "acc": values["accuracy"], "img/s": line["images_per_second"]}
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)

    def _count_skip(
        self, numbers: StepNumbers, values: dict[str, Any], *, last_checkpoint: Callable[[], str | None]
    ) -> None:
        is_skipped = bool(values.pop(SKIPPED, 0))
        self.skipped_steps += is_skipped
        self._skips_in_a_row = self._skips_in_a_row + 1 if is_skipped else 0
        if is_skipped and self._skips_in_a_row < MOST_SKIPS:
            what, found = self._finding(numbers, values), self._advice_to_replay(numbers.step)
            if self._flight is not None:
                self._flight.write(f"{what}; its update is skipped")
            _log.warning("%s; its update is skipped, as %d of this run so far. %s", what, self.skipped_steps, found)
        elif is_skipped:
            alarm = self._alarm(numbers, values, last_checkpoint())
            raise NonFiniteError(too_many_skips(self._skips_in_a_row, step=numbers.step, alarm=alarm))

    def _finding(self, numbers: StepNumbers, values: Mapping[str, Any]) -> str:
        first = (numbers.step - 1) * self._config.batch_size
        bad = ", ".join(f"{name}={values[name]}" for name in ("loss", "grad_norm", "update_norm"))
        return (
            f"step {numbers.step} gave {bad} on samples {first} to {first + self._config.batch_size - 1} "
            f"(records {', '.join(map(str, numbers.sample_id[:8]))}, ...)"
        )

    def _advice_to_replay(self, step: int) -> str:
        return f"`{command_line('replay', self._workdir, step)}` finds the record"

    def _alarm(self, numbers: StepNumbers, values: Mapping[str, Any], last_checkpoint: str | None) -> str:
        back = last_checkpoint or "there is no checkpoint yet"
        return (
            f"{self._finding(numbers, values)}; {back}. {self._advice_to_replay(numbers.step)}. Look at those records, "
            f"or {self._way_out(has_checkpoint=last_checkpoint is not None)}"
        )

    def _way_out(self, *, has_checkpoint: bool) -> str:
        """Advice after non-finite numbers: flags of a new run that is calmer than this one."""
        optim = self._config.optim
        clip = "--optim.clip-norm 1" if optim.clip_norm is None else f"--optim.clip-norm below {optim.clip_norm:g}"
        limit = optim.max_temperature
        cap = "--optim.max-temperature 100" if limit is None else f"--optim.max-temperature below {limit:g}"
        if has_checkpoint:
            init = self._config.init
            done = "".join(f" {word}" for word in (flags_after(init.surgery) if init else ()))
            start = f"--init-from {shlex.quote(str(self._workdir))}{done} (the optimizer then starts at step 0) and "
        else:
            start = ""
        skip = "skip the step with --on-non-finite skip, or " if self._config.on_non_finite == "stop" else ""
        return f"{skip}start a new --workdir with {start}--optim.peak-lr below {optim.peak_lr:g}, {clip} or {cap}"

    def __enter__(self) -> "Reports":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._log is not None:
            self._log.close()
        if self._events is not None:
            self._events.close()
        if self._page is not None:
            self._page.close(error)
