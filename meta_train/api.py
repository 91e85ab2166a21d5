"""Meta-training from Python, for task families that the command line has no name for."""

from pathlib import Path
from typing import Any

from l2o.checkpoint import load_rule
from l2o.rule import UpdateRule
from meta_train.config import TrainConfig
from meta_train.distributed import DeviceName, join_ranks
from meta_train.run_training import run_training
from meta_train.shared_run import open_or_create_run
from meta_train.tracking import WandbMode
from tasks.task import TaskFamily


def train(
    task: TaskFamily, out: str | Path, *, wandb: WandbMode = "auto", device: DeviceName = "cpu", **options: Any
) -> UpdateRule:
    """Meta-train a rule on a task family, as `l2o train` does, and return the best one found.

    Calling it again with the same arguments goes on with an interrupted run, to bit for bit the same weights.

    Args:
        task: what to train on, such as a `tasks.ModuleTask`.
        out: run directory; `l2o.load(out, params)` makes an optimizer of it.
        wandb: Weights & Biases; auto is online when logged in, else offline, and off when not installed.
        device: where to compute.
        options: fields of `TrainConfig`.

    Raises:
        TypeError: if an option is unknown.
        ValueError: if options contradict each other, or `out` holds a run with others.
        BlockingIOError: if another process trains in `out`.
        TrainingError: if the run cannot be written, no window could be used, or no validation gave a finite loss.
        KeyboardInterrupt: if a signal ended the run, after its checkpoint was written.

    Example:
        >>> import tempfile
        >>> from tasks import Quadratic
        >>> out = tempfile.mkdtemp()
        >>> rule = train(Quadratic(dim=2), out, outer_steps=2, valid_tasks=4, wandb="off")
        >>> type(rule).__name__
        'CoordinatewiseLSTM'
    """
    config = TrainConfig(task, **options)
    with join_ranks(device) as ranks, open_or_create_run(ranks, Path(out), config, {"wandb": wandb}) as run:
        run_training(run, wandb, ranks)
    return load_rule(str(out))
