"""What a person sees of a run: a progress bar or plain lines, metrics.jsonl, and Weights & Biases when installed."""

import math
import sys
import time
from typing import Any

from tqdm import tqdm

from l2o.checkpoint import CheckpointError, find, read_card
from meta_train.config_json import to_json
from meta_train.run_directory import RunDirectory, last_logged
from meta_train.wandb_run import WandbMode, choose_wandb, finish_wandb, log_model, open_wandb

_LINE_SECONDS = 10.0
"""Time between two plain lines when the output is not a terminal."""


class Progress:
    """Shows a run on stderr, and logs it.

    Args:
        run: whose metrics.jsonl to write.
        wandb_mode: auto is online when logged in, else offline; off when wandb is not installed.
        log_every: outer steps between two records of the running meta-loss.
    """

    def __init__(self, run: RunDirectory, wandb_mode: WandbMode = "auto", log_every: int = 20):
        self.run, self.log_every = run, log_every
        self.total = run.config.outer_steps
        self.bar: tqdm | None = None
        choose_wandb(wandb_mode)  # what is wrong with it is said before anything is computed
        self.wandb = None
        self._wandb_mode: WandbMode = wandb_mode
        self.window: list[float] = []
        """Losses since the last record; part of the checkpoint, so that a resumed run records the same means."""
        self._inner_steps, self._since = 0, time.perf_counter()
        self._line_time, self._begun = 0.0, None
        self._validation = ""
        self._cpu_before, self._cpu_begun = 0.0, time.process_time()

    def outer_step(self, outer_step: int, loss: float, inner_steps: int, diverged: int) -> None:
        """Note one outer step.

        Args:
            loss: mean over living tasks of the window's inner losses; NaN if the window could not be used.
            inner_steps: made, over all tasks.
            diverged: trajectories lost so far.
        """
        if self._begun is None:
            now = time.perf_counter()
            self.wandb = start_wandb(self.run, self._wandb_mode)  # a run that fails to start leaves no trace there
            self._since += time.perf_counter() - now
            self._cpu_before = last_logged(self.run.path, "cpu_s") or 0.0
            self._begun = (outer_step - 1, time.perf_counter())
            if sys.stderr.isatty():
                self.bar = tqdm(total=self.total, initial=outer_step - 1, unit="outer step", dynamic_ncols=True)
        self.window.append(loss)
        self._inner_steps += inner_steps
        if self.bar is not None:
            self.bar.update()
        if outer_step % self.log_every == 0 or outer_step == self.total:
            self._flush(outer_step, diverged)

    def validation(self, outer_step: int, results: dict[str, float], best: float) -> None:
        """Note a validation: means over problems, of which "meta_loss" decides, and the best of these so far."""
        self._validation = f"validation {results['meta_loss']:.4g} (best {best:.4g})"
        self._record({"outer_step": outer_step} | {f"valid/{name}": value for name, value in results.items()})
        if self.bar is not None:
            self.bar.set_postfix_str(self._validation)

    def close(self) -> None:
        """End the bar and the W&B run, which gets the checkpoint that `l2o.load` takes."""
        if self.bar is not None:
            self.bar.close()
        if self.wandb is not None:
            self._log_checkpoint()
            finish_wandb(self.wandb)

    def _log_checkpoint(self) -> None:
        try:
            checkpoint = find(self.run.path)
            card = read_card(checkpoint)
        except CheckpointError:  # interrupted before the first one
            return
        log_model(self.wandb, self.run.path.resolve().name, checkpoint, card)

    def _flush(self, outer_step: int, diverged: int) -> None:
        now = time.perf_counter()
        usable = [loss for loss in self.window if math.isfinite(loss)]
        loss = sum(usable) / len(usable) if usable else math.nan
        rate = self._inner_steps / (now - self._since)
        self._record({
            "outer_step": outer_step, "train/loss": loss, "inner_steps_per_s": round(rate, 1), "diverged": diverged,
            "cpu_s": round(self._cpu_before + time.process_time() - self._cpu_begun, 1),
        })  # fmt: skip
        self.window, self._inner_steps, self._since = [], 0, now
        status = f"loss {loss:.4g}, {rate:,.0f} inner steps/s" + (
            f", {diverged} trajectories diverged" if diverged else ""
        )
        if self.bar is not None:
            self.bar.set_description_str(status)
        elif now - self._line_time > _LINE_SECONDS or outer_step == self.total:
            self._line_time = now
            parts = (f"{outer_step}/{self.total}: {status}", self._time_left(outer_step, now), self._validation)
            print(", ".join(part for part in parts if part), file=sys.stderr)

    def _time_left(self, outer_step: int, now: float) -> str:
        first, begun = self._begun or (0, now)
        seconds = round((now - begun) / max(outer_step - first, 1) * (self.total - outer_step))
        return f"{seconds // 60} min {seconds % 60:02d} s left"

    def _record(self, record: dict[str, Any]) -> None:
        self.run.log(record)
        if self.wandb is not None:
            self.wandb.log(
                {name: value for name, value in record.items() if name != "outer_step"}, step=record["outer_step"]
            )


def start_wandb(run: RunDirectory, mode: WandbMode):
    """Return a W&B run for a run directory, or None when off or not installed.

    Raises:
        ValueError: see `open_wandb`.
    """
    # The directory's name alone would mix two runs which had it one after the other.
    identity = (run.path / "env.json").read_bytes()
    name = run.path.resolve().name
    return open_wandb(run.path, mode, name=name, identity=identity, kind="training", config=to_json(run.config))
