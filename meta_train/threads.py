"""CPU threads, whose number decides how a sum is rounded."""

import torch

from meta_train.distributed import Message, Ranks, default_threads
from meta_train.run_directory import RunDirectory

_MOST = 1024


def set_threads(threads: int | None) -> None:
    """Set torch's CPU threads; None leaves them as they are.

    Raises:
        ValueError: if fewer than one is asked for, or so many that starting them could fail.
    """
    if threads is not None and not 1 <= threads <= _MOST:
        raise ValueError(f"threads must be at least 1 and at most {_MOST}, got {threads}")
    if threads is not None:
        torch.set_num_threads(threads)


def set_threads_as_before(run: RunDirectory, ranks: Ranks) -> None:
    """Take as many threads as the run began with, if it had as many ranks; else the default."""

    def recorded() -> int | None:
        then = run.environment()
        same = then.get("ranks", 1) == ranks.n_ranks and isinstance(then.get("threads"), int)
        return then["threads"] if same else None

    threads = ranks.scatter(lambda rank: Message(recorded())).values
    set_threads(default_threads() if threads is None else threads)
