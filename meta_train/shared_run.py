"""The run directory of one command: made or opened by rank 0 alone, locked, and taken back if nothing came of it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from meta_train.config import TrainConfig
from meta_train.config_json import from_json, to_json
from meta_train.distributed import Message, Ranks, under_torchrun
from meta_train.lock import locked
from meta_train.run_directory import RunDirectory
from tasks.task import TaskFamily


@contextlib.contextmanager
def create_run(
    ranks: Ranks, path: Path | None, default: Path, config: TrainConfig, settings: dict[str, Any] | None = None
) -> Iterator[RunDirectory]:
    """Make and lock the run directory on rank 0; after a restart by torchrun, continue the one made before it.

    If the block fails before the first checkpoint, the same command can be given again: the run is taken back.

    Args:
        path: of the run; under torchrun it must be given, so that a restart finds it.
        default: taken where path is None.
        settings: kept in the directory for `l2o resume`.

    Raises:
        ValueError: if path is None under torchrun.
        FileExistsError: if there is a run already, unless it is this one before the restart.
        BlockingIOError: if another process writes into the directory.
    """
    if path is None and under_torchrun():
        raise ValueError("under torchrun, name the run directory with --out: a restarted run must find it again")
    with contextlib.ExitStack() as held:
        yield _same_run(ranks, lambda: held.enter_context(_make(ranks, path or default, config, settings)), config.task)


@contextlib.contextmanager
def open_run(ranks: Ranks, path: Path) -> Iterator[RunDirectory]:
    """Open and lock an existing run, which rank 0 alone reads.

    Raises:
        ValueError: if it is none.
        BlockingIOError: if another process writes into it.
    """
    with contextlib.ExitStack() as held:

        def on_main() -> RunDirectory:
            run = RunDirectory.open(path)
            held.enter_context(locked(path))
            return run

        yield _same_run(ranks, on_main)


@contextlib.contextmanager
def open_or_create_run(
    ranks: Ranks, path: Path, config: TrainConfig, settings: dict[str, Any] | None = None
) -> Iterator[RunDirectory]:
    """Go on with the run in a directory if it has this config; make it if there is none.

    Raises:
        ValueError: if the directory holds a run with another config.
        BlockingIOError: if another process writes into the directory.
    """
    with contextlib.ExitStack() as held:

        def on_main() -> RunDirectory:
            if not (path / "config.json").exists():
                return held.enter_context(_make(ranks, path, config, settings))
            run = RunDirectory.open(path, config.task)
            if run.config != config:
                raise ValueError(f"{path} holds a run with another configuration ({_difference(run.config, config)})")
            held.enter_context(locked(path))
            return run

        yield _same_run(ranks, on_main, config.task)


def _difference(found: TrainConfig, asked: TrainConfig) -> str:
    before, after = to_json(found), to_json(asked)
    return ", ".join(f"{name} {before[name]} instead of {after[name]}" for name in after if before[name] != after[name])


@contextlib.contextmanager
def _make(ranks: Ranks, path: Path, config: TrainConfig, settings: dict[str, Any] | None) -> Iterator[RunDirectory]:
    path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        if not (path / "config.json").exists():
            ranks.remember(path)
        elif ranks.made_before_a_restart(path) and (found := RunDirectory.open(path)).config == config:
            yield found
            return
        run = RunDirectory.create(path, config, settings)
        try:
            yield run
        except BaseException:
            run.discard_unless_checkpointed()
            raise


def _same_run(ranks: Ranks, on_main: Callable[[], RunDirectory], task: TaskFamily | None = None) -> RunDirectory:
    run = on_main() if ranks.is_main else None
    values = {"path": str(run.path), "config": to_json(run.config)} if run is not None else {}
    values = ranks.scatter(lambda rank: Message(values)).values
    return run or RunDirectory(Path(values["path"]), from_json(values["config"], task))
