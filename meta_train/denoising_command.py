"""The command `l2o denoising`: learn λ of Tikhonov and of total variation, and write results/denoising."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meta_train.denoising_report import write_denoising_report
from meta_train.denoising_study import SETTINGS, Choice, run_denoising
from meta_train.options import Threads
from meta_train.threads import set_threads


def add_denoising_command(app: Any, postponed: Callable[..., Any]) -> None:
    """Add `denoising`.

    Args:
        postponed: makes a function one that returns what it would do.
    """
    app.command(name="denoising")(postponed(denoising))


def denoising(
    out: Path = Path("results/denoising"),
    images: Choice = "published",
    rebuild: bool = False,
    threads: Threads = 1,
) -> None:
    """Learn the weight λ of Tikhonov and of total variation, and a network that predicts it; write table and figure.

    Args:
        out: Directory to write.
        images: published takes train400, Set12 and BSD68 from L2O_DATA; embedded takes two photographs, and no file.
        rebuild: Only write README and figure again, from the CSV files in the directory.
    """
    set_threads(threads)
    if not rebuild:
        options = ["--out", str(out), "--images", images, "--threads", str(threads)]
        run_denoising(out, shlex.join(["l2o", "denoising", *options]), SETTINGS[images])
    print(write_denoising_report(out))
    print(f"table, figure and README are in {out}")
