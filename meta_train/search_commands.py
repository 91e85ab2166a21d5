"""The command `l2o search`: random search over the weights of a rule that has few."""

import dataclasses
import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated

import torch
import tyro

from l2o.checkpoint import find
from l2o.rules import AdamConfig, HyperLISTAConfig
from meta_train.config import PRESETS, TrainConfig
from meta_train.distributed import Ranks, default_threads
from meta_train.run_directory import RunDirectory
from meta_train.run_training import one_line
from meta_train.search import SearchConfig, search, searchable_rule
from meta_train.shared_run import create_run
from meta_train.threads import set_threads
from meta_train.training_command import training_command
from tasks import Lasso


def add_search_command(app: tyro.extras.SubcommandApp, postponed: Callable) -> None:
    """Add `search`, with a subcommand for every preset.

    Args:
        postponed: makes a function one that returns what it would do.
    """
    presets = tyro.extras.SubcommandApp()
    for name, config in PRESETS.items():
        presets.command(name=name, help=f"Search on the validation problems of l2o train {name}.")(
            postponed(_command(name, search_default(config)))
        )
    app.command(
        presets,
        name="search",
        help="Random search over the weights of a rule that has few, some of them without gradient (hyperlista). "
        "Writes a run directory, as l2o train does; l2o resume goes on.",
    )


def search_default(preset: TrainConfig) -> TrainConfig:
    """Return a preset of `l2o train` with a rule that has few weights: HyperLISTA for sparse codes, else Adam."""
    rule = HyperLISTAConfig() if isinstance(preset.task, Lasso) else AdamConfig()
    return dataclasses.replace(preset, rule=rule)


def continue_search(run: RunDirectory) -> None:
    """Search on to the last round, and say where the checkpoint is.

    Raises:
        ValueError: if settings.json is not that of a search.
    """
    settings = run.settings()
    try:
        options, command = SearchConfig(**settings["search"]), str(settings["command"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run.path}: settings.json is not that of a search ({error!r})") from error
    with one_line():
        least = search(run, options, command)
    print(f'meta-loss {least:.4g}, checkpoint: {find(run.path)}   (l2o.load_rule("{run.path}"))')


def search_command(preset: str, config: TrainConfig, options: SearchConfig) -> str:
    """Return the command line of a search.

    >>> search_command("sparse", search_default(PRESETS["sparse"]), SearchConfig(rounds=3))
    'l2o search sparse --search.rounds 3'
    """
    presets = {name: search_default(config) for name, config in PRESETS.items()}
    typed = (training_command(config, presets) or f"l2o train {preset}").replace("l2o train", "l2o search", 1)
    changed = {k: v for k, v in dataclasses.asdict(options).items() if v != getattr(SearchConfig(), k)}
    return shlex.join([*shlex.split(typed), *(part for k, v in changed.items() for part in (f"--search.{k}", str(v)))])


def _command(preset: str, default: TrainConfig) -> Callable[..., None]:
    def command(
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = default,
        search_config: Annotated[SearchConfig, tyro.conf.arg(name="search")] = SearchConfig(),  # noqa: B008 (frozen)
        out: Annotated[Path | None, tyro.conf.arg(help="Run directory; None makes runs/PRESET-DATE-TIME.")] = None,
        threads: Annotated[int | None, tyro.conf.arg(help="CPU threads; None takes all cores.")] = None,
    ) -> None:
        set_threads(default_threads() if threads is None else threads)
        searchable_rule(config, torch.Generator())  # a wrong rule is found before the run directory is made
        directory = Path("runs") / f"{preset}-{datetime.now():%Y%m%d-%H%M%S}"
        typed = search_command(preset, config, search_config)
        settings = {"search": dataclasses.asdict(search_config), "command": typed}
        with create_run(Ranks(), out, directory, config, settings) as run:
            continue_search(run)

    return command
