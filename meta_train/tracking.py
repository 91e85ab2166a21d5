"""What a person sees of a run: a progress bar or plain lines, metrics.jsonl, and Weights & Biases when installed."""

import os
import sys
import time
from typing import Any, Literal

from tqdm import tqdm

from meta_train.config import to_json
from meta_train.run_directory import RunDirectory

WandbMode = Literal["auto", "online", "offline", "off"]

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
        self.wandb = start_wandb(run, wandb_mode)
        self._window: list[float] = []
        self._inner_steps, self._since = 0, time.perf_counter()
        self._line_time, self._begun = 0.0, None
        self._validation = ""

    def outer_step(self, outer_step: int, loss: float, inner_steps: int, skipped: int) -> None:
        """Note one outer step: mean inner loss of its window and the inner steps made, over all tasks."""
        if self._begun is None:
            self._begun = (outer_step - 1, time.perf_counter())
            if sys.stderr.isatty():
                self.bar = tqdm(total=self.total, initial=outer_step - 1, unit="outer step", dynamic_ncols=True)
        self._window.append(loss)
        self._inner_steps += inner_steps
        if self.bar is not None:
            self.bar.update()
        if outer_step % self.log_every == 0 or outer_step == self.total:
            self._flush(outer_step, skipped)

    def validation(self, outer_step: int, sum_loss: float, final_loss: float, best: float) -> None:
        """Note a validation: mean over problems of the sum of losses and of the last loss."""
        self._validation = f"validation {sum_loss:.4g} (best {best:.4g})"
        self._record({"outer_step": outer_step, "valid/sum_loss": sum_loss, "valid/final_loss": final_loss})
        if self.bar is not None:
            self.bar.set_postfix_str(self._validation)

    def close(self) -> None:
        """End the bar and the W&B run."""
        if self.bar is not None:
            self.bar.close()
        if self.wandb is not None:
            self.wandb.finish(quiet=True)

    def _flush(self, outer_step: int, skipped: int) -> None:
        now = time.perf_counter()
        loss, rate = sum(self._window) / len(self._window), self._inner_steps / (now - self._since)
        self._record({
            "outer_step": outer_step, "train/loss": loss, "inner_steps_per_s": round(rate, 1), "skipped": skipped,
        })  # fmt: skip
        self._window, self._inner_steps, self._since = [], 0, now
        status = f"loss {loss:.4g}, {rate:,.0f} inner steps/s" + (f", {skipped} windows skipped" if skipped else "")
        if self.bar is not None:
            self.bar.set_description_str(status)
        elif now - self._line_time > _LINE_SECONDS or outer_step == self.total:
            self._line_time = now
            print(
                f"{outer_step}/{self.total}: {status}, {self._time_left(outer_step, now)} {self._validation}",
                file=sys.stderr,
            )

    def _time_left(self, outer_step: int, now: float) -> str:
        first, begun = self._begun or (0, now)
        seconds = (now - begun) / max(outer_step - first, 1) * (self.total - outer_step)
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s left"

    def _record(self, record: dict[str, Any]) -> None:
        self.run.log(record)
        if self.wandb is not None:
            self.wandb.log(
                {name: value for name, value in record.items() if name != "outer_step"}, step=record["outer_step"]
            )


def start_wandb(run: RunDirectory, mode: WandbMode):
    """Return a W&B run for a run directory, or None when off or not installed.

    Raises:
        ValueError: if online is asked for and wandb is not installed.
    """
    if mode == "off" or os.environ.get("WANDB_MODE") == "disabled":
        return None
    try:
        import wandb
    except ImportError:
        if mode == "online":
            raise ValueError("--wandb online needs wandb: pip install 'l2o[train]'") from None
        return None
    if mode == "auto":
        mode = "online" if wandb.api.api_key else "offline"
    settings = wandb.Settings(silent=True, console="off", disable_git=True)
    name = run.path.name
    return wandb.init(
        project="l2o",
        id=name,
        name=name,
        resume="allow",
        mode=mode,
        dir=run.path,
        config=to_json(run.config),
        settings=settings,
    )
