"""A training run from start or checkpoint to its end: stops on signals with a checkpoint, says what stopped it."""

import contextlib
import math
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from safetensors import SafetensorError

from meta_train.distributed import Ranks, Silence
from meta_train.run_directory import RunDirectory
from meta_train.tracking import Progress, WandbMode
from meta_train.trainer import Trainer


class TrainingError(RuntimeError):
    """A run cannot go on, or came to nothing; the message is one line."""


def run_training(run: RunDirectory, wandb: WandbMode, ranks: Ranks) -> dict[str, Any]:
    """Train to the end or to the first SIGINT or SIGTERM on any rank, which ends the run with a checkpoint.

    Returns: the summary of `Trainer.train`.

    Raises:
        KeyboardInterrupt: on rank 0, if a signal ended it; SystemExit with 130 on the others.
        TrainingError: if the run cannot be written, no window could be used, or no validation gave a finite loss.
    """
    with contextlib.closing(Progress(run, wandb) if ranks.is_main else Silence()) as progress, writing(run):
        trainer = Trainer(run, progress, ranks)
        with _stopped_by_signals(trainer, ranks):
            summary = trainer.train()
    if trainer.outer_step < run.config.outer_steps:
        if not ranks.is_main:
            sys.exit(130)
        raise KeyboardInterrupt(f"stopped with a checkpoint; continue with: {run.continuation}")
    if ranks.is_main and summary["skipped_windows"] == summary["outer_steps"]:
        raise TrainingError(
            f"no window could be used: in all {summary['outer_steps']}, every trajectory diverged (a loss above "
            "--divergence times its first one, or not a number) or the meta-gradient was not finite. Try a smaller "
            "--outer-lr, --rule.scale or --rule.lr, or a larger --divergence"
        )
    if ranks.is_main and not math.isfinite(summary["best_validation"]):
        raise TrainingError(
            f"nothing was learned: at every validation the rule diverged on some of the {run.config.valid_tasks} "
            f"problems within the {run.config.horizon} steps of the horizon, so no checkpoint is the best. The last "
            f"weights are in {run.checkpoints / 'last'}. Try a smaller --outer-lr, a shorter --horizon and "
            "--truncation (for rules with layers: as many as they have), or another rule"
        )
    return summary


@contextlib.contextmanager
def _stopped_by_signals(trainer: Trainer, ranks: Ranks) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # others may not handle signals
        yield
        return

    def stop(signum, frame):
        trainer.stop_requested = True
        if ranks.is_main:
            print("\nstopping after this outer step …", file=sys.stderr)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Say a `TrainingError` in one line, and end with status 1."""
    try:
        yield
    except TrainingError as error:
        print(f"l2o: {error}", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def writing(run: RunDirectory) -> Iterator[None]:
    """Turn what a full disk raises into a `TrainingError`."""
    try:
        yield
    except ConnectionError:  # between ranks
        raise
    except (OSError, SafetensorError) as error:
        advice = f"; its last checkpoint is intact, continue with: {run.continuation}" if run.has_state else ""
        raise TrainingError(f"{run.path} cannot be written: {error}{advice}") from error
