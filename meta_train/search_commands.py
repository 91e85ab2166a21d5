"""The command `l2o search`: random search over the weights of a rule that has few."""

import dataclasses
import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tyro

from l2o.checkpoint import find
from meta_train.config import PRESETS, TrainConfig
from meta_train.distributed import default_threads
from meta_train.search import SearchConfig, search
from meta_train.threads import set_threads
from meta_train.training_command import training_command


def add_search_command(app: tyro.extras.SubcommandApp, postponed: Callable) -> None:
    """Add `search`, with a subcommand for every preset.

    Args:
        postponed: makes a function one that returns what it would do.
    """
    presets = tyro.extras.SubcommandApp()
    for name, config in PRESETS.items():
        presets.command(name=name, help=f"Search on the validation problems of l2o train {name}.")(
            postponed(_command(name, config))
        )
    app.command(
        presets,
        name="search",
        help="Random search over the weights of a rule that has few, some of them without gradient (hyperlista).",
    )


def _command(preset: str, default: TrainConfig) -> Callable[..., None]:
    def command(
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = default,
        search_config: Annotated[SearchConfig, tyro.conf.arg(name="search")] = SearchConfig(),  # noqa: B008 (frozen)
        out: Annotated[Path | None, tyro.conf.arg(help="Directory; None makes runs/PRESET-DATE-TIME.")] = None,
        threads: Annotated[int | None, tyro.conf.arg(help="CPU threads; None takes all cores.")] = None,
    ) -> None:
        set_threads(default_threads() if threads is None else threads)
        directory = out or Path("runs") / f"{preset}-{datetime.now():%Y%m%d-%H%M%S}"
        least = search(config, search_config, directory, search_command(preset, config, search_config))
        print(f'meta-loss {least:.4g}, checkpoint: {find(directory)}   (l2o.load_rule("{directory}"))')

    return command


def search_command(preset: str, config: TrainConfig, options: SearchConfig) -> str:
    """Return the command line of a search.

    >>> search_command("sparse", PRESETS["sparse"], SearchConfig(rounds=3))
    'l2o search sparse --search.rounds 3'
    """
    typed = (training_command(config) or f"l2o train {preset}").replace("l2o train", "l2o search", 1)
    changed = {k: v for k, v in dataclasses.asdict(options).items() if v != getattr(SearchConfig(), k)}
    return shlex.join([*shlex.split(typed), *(part for k, v in changed.items() for part in (f"--search.{k}", str(v)))])
