"""The command `l2o hypergradients`."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meta_train.hyper_report import write_hyper_report
from meta_train.hyper_study import HyperConfig, run_hyper
from meta_train.options import Threads
from meta_train.threads import set_threads
from tasks.image_crops import CropSource


def add_hyper_command(app: Any, postponed: Callable[..., Any]) -> None:
    """Add the command to the command line.

    Args:
        postponed: makes a function one that returns what it would do.
    """
    app.command(name="hypergradients")(postponed(hypergradients))


def hypergradients(
    out: Path = Path("results/hypergradients"),
    source: CropSource = "embedded",
    rebuild: bool = False,
    threads: Threads = 1,
) -> None:
    """Learn weight decays, a regularisation and a stopping time by gradient; measure what it gains and costs.

    Args:
        out: Directory to write.
        source: Crops to denoise; train400 needs L2O_DATA.
        rebuild: Only write README and figure again, from the CSV files in the directory.
    """
    set_threads(threads)
    if not rebuild:
        options = ["--out", str(out), "--source", source]
        run_hyper(HyperConfig(source=source), out, shlex.join(["l2o", "hypergradients", *options]))
    print(write_hyper_report(out))
    print(f"table, figure and README are in {out}")
