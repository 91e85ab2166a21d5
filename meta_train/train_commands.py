"""The commands that learn: `l2o train`, and `l2o resume`, which continues what it or `l2o search` began."""

import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro

from l2o.checkpoint import find, load_rule
from l2o.rule import ModelBasedRule
from meta_train.config import PRESETS, TrainConfig
from meta_train.distributed import Ranks, default_threads, join_ranks
from meta_train.options import Device, Threads, Wandb
from meta_train.run_directory import RunDirectory, changes_since
from meta_train.run_training import one_line, run_training
from meta_train.search_commands import continue_search
from meta_train.shared_run import create_run, open_run
from meta_train.threads import set_threads, set_threads_as_before
from meta_train.wandb_run import WandbMode


def add_train_commands(app: Any, postponed: Callable[..., Any]) -> None:
    """Add `train`, with a subcommand for every preset, and `resume`.

    Args:
        postponed: makes a function one that returns what it would do.
    """
    presets = tyro.extras.SubcommandApp()
    for name, config in PRESETS.items():
        text = f"Meta-train on {config.task}.".replace("<", "").replace(">", "")
        presets.command(name=name, help=text)(postponed(_train_command(name, config)))
    app.command(
        presets,
        name="train",
        help="Meta-train a rule, starting from a preset. Writes a run directory, which l2o.load and l2o benchmark "
        "take. Ctrl-C stops cleanly; l2o resume goes on.",
    )
    app.command(name="resume")(postponed(resume))


def run_and_report(run: RunDirectory, wandb: WandbMode, ranks: Ranks) -> None:
    """Train, and say where the checkpoint is."""
    with one_line():
        summary = run_training(run, wandb, ranks)
    if ranks.is_main:
        print(", ".join(f"{name} {value:g}" for name, value in summary.items()))
        rule = load_rule(run.path)
        call = f'l2o.load_rule("{run.path}")' if isinstance(rule, ModelBasedRule) else f'l2o.load("{run.path}", params)'
        print(f"checkpoint: {find(run.path)}, {sum(p.numel() for p in rule.parameters()):,} weights   ({call})")


def _train_command(preset: str, default: TrainConfig) -> Callable[..., None]:
    """Return the function behind `l2o train PRESET`."""

    def command(
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = default,
        out: Annotated[Path | None, tyro.conf.arg(help="Run directory; None makes runs/PRESET-DATE-TIME.")] = None,
        wandb: Wandb = "auto",
        threads: Threads = None,
        device: Device = "cpu",
    ) -> None:
        if config.start_from is not None:
            config.build_rule(None)  # a wrong name is found before the run directory is made
        default_path = Path("runs") / f"{preset}-{datetime.now():%Y%m%d-%H%M%S}"
        with join_ranks(device) as ranks:
            set_threads(default_threads() if threads is None else threads)
            with create_run(ranks, out, default_path, config, {"wandb": wandb}) as run:
                run_and_report(run, wandb, ranks)

    return command


def resume(
    run_directory: tyro.conf.Positional[Path],
    wandb: Annotated[
        WandbMode | None, tyro.conf.arg(help="Weights & Biases, as for l2o train; None does as the run began.")
    ] = None,
    threads: Annotated[int | None, tyro.conf.arg(help="CPU threads; None takes as many as the run began with.")] = None,
    device: Device = "cpu",
) -> None:
    """Continue an interrupted training run or search, to bit for bit the weights of an uninterrupted one.

    Args:
        run_directory: Directory that l2o train or l2o search made.
    """
    set_threads(threads)
    with join_ranks(device) as ranks, open_run(ranks, run_directory) as run:
        if threads is None:
            set_threads_as_before(run, ranks)
        if ranks.is_main and (changes := changes_since(run.environment())):
            print(f"l2o: other last bits than without the interruption: {', '.join(changes)}", file=sys.stderr)
        if ranks.is_main and not run.has_state:
            print(f"l2o: {run.path} holds no state.safetensors: it begins again at step 0", file=sys.stderr)
        if "search" not in run.settings():
            run_and_report(run, wandb or _wandb_as_before(run), ranks)
        elif ranks.n_ranks > 1:
            raise ValueError(f"{run.path} is a search, which runs in one process; resume it without torchrun")
        else:
            continue_search(run)


def _wandb_as_before(run: RunDirectory) -> WandbMode:
    """Return what `l2o train` was told of W&B; auto if that is not known."""
    told = run.settings().get("wandb")
    return next((mode for mode in get_args(WandbMode) if mode == told), "auto")
