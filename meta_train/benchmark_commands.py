"""The commands that measure: `l2o benchmark | report | speed | estimators`."""

import os
import shlex
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import tyro

from l2o.checkpoint import find
from meta_train.art_benchmark import run_art
from meta_train.art_report import write_art_report
from meta_train.benchmark import run_benchmark
from meta_train.bmo_report import write_joint_report, write_sparse_coding_report
from meta_train.bmo_sparse_coding import run_sparse_coding
from meta_train.bmo_study import run_joint
from meta_train.estimator_report import write_estimator_report
from meta_train.estimator_study import run_study
from meta_train.lasso_benchmark import run_lasso
from meta_train.lasso_report import write_lasso_report
from meta_train.options import Threads, Wandb
from meta_train.protocols import PROTOCOLS
from meta_train.recovery_benchmark import run_recovery
from meta_train.recovery_report import write_recovery_report
from meta_train.report import write_report
from meta_train.report_all import report_all
from meta_train.safeguard_report import write_safeguard_report
from meta_train.safeguard_study import run_safeguard
from meta_train.speed import measure, print_speed, write_speed
from meta_train.speed_limits import measure_step, measure_windows
from meta_train.threads import set_threads
from meta_train.wandb_benchmark import log_benchmark
from meta_train.wandb_report import report_publisher
from meta_train.wandb_run import choose_wandb

STUDIES: dict[str, tuple[Callable[[Sequence[str], Path, str], None], Callable[[Path], str]]] = {
    "sparse-recovery": (run_recovery, write_recovery_report),
    "lasso-objective": (run_lasso, write_lasso_report),
    "safeguard": (run_safeguard, write_safeguard_report),
    "neural-art": (run_art, write_art_report),
    "bilevel": (run_joint, write_joint_report),
    "bmo-sparse-coding": (run_sparse_coding, write_sparse_coding_report),
}
"""Benchmarks with measures of their own: name -> what measures, and what reports it."""


def add_benchmark_commands(app: Any, postponed: Callable[..., Any]) -> None:
    """Add the commands to the command line.

    Args:
        postponed: makes a function one that returns what it would do.
    """
    for command in (benchmark, report, speed, estimators):
        app.command(name=command.__name__)(postponed(command))


def benchmark(
    protocol: tyro.conf.Positional[Literal[(*PROTOCOLS, *STUDIES)]],  # pyright: ignore (the names are in tables)
    checkpoint: tuple[str, ...] = (),
    out: Path | None = None,
    wandb: Wandb = "auto",
    threads: Threads = None,
) -> None:
    """Race learned rules against tuned classics on a frozen protocol; write table, curves and README.

    Args:
        protocol: What to run; l2o list describes them.
        checkpoint: Learned rules: shipped names, checkpoint or run directories; none takes the protocol's own.
        out: Directory to write; None is results/PROTOCOL, with checkpoints given runs/benchmark-PROTOCOL-DATE-TIME.
    """
    choose_wandb(wandb)  # what is wrong with it is said before anything is computed
    set_threads(threads)
    command = ["l2o", "benchmark", protocol, *(["--checkpoint", *checkpoint] if checkpoint else [])]
    command += (["--out", str(out)] if out else []) + (["--threads", str(threads)] if threads else [])
    own = Path("runs") / f"benchmark-{protocol}-{datetime.now():%Y%m%d-%H%M%S}"
    directory = out or (own if checkpoint else Path("results") / protocol)
    if protocol in STUDIES:
        measure_it, report_it = STUDIES[protocol]
        measure_it(checkpoint, directory, shlex.join(command))
        print(report_it(directory))
        return
    run_benchmark(PROTOCOLS[protocol], checkpoint, directory, shlex.join(command))
    print(write_report(directory))
    sources = checkpoint or PROTOCOLS[protocol].learned
    log_benchmark(directory, [find(source) for source in sources], wandb)
    print(f"table, curves and README are in {directory}")


def report(
    directories: tyro.conf.Positional[tuple[Path, ...]] = (),
    out: Path | None = None,
    wandb_report: bool = False,
) -> None:
    """Rebuild README.md and the figure of benchmarks from their CSV files, and one page with the results of all.

    l2o report results/mnist rebuilds that directory alone. With several directories, a folder of them, or none (all
    below results/), it also writes report.md and report.html, a page that needs no network and no other file.

    Args:
        directories: Directories that l2o benchmark wrote, or folders of them; none is results.
        out: The page's file, or a folder for report.md and report.html; None puts them beside the directories.
        wandb_report: Also publish the page as a report on Weights & Biases; needs a login and wandb-workspaces.
    """
    publish = report_publisher() if wandb_report else None
    sections, files = report_all(directories, out)
    for file in files:
        print(f"wrote {file}")
    if not files:
        print("nothing to rebuild: README and figures of a study are made by its own command, which its README names")
    if publish is not None:
        print(f"published {publish(sections)}")


def speed(threads: Threads = None, json: bool = False, out: Path | None = None) -> None:
    """Measure inner steps per CPU-second, side by side with a stock loop of nn.LSTMCells; under a minute.

    Args:
        json: Print one JSON object instead of a table.
        out: Also measure every number of threads up to this machine's cores and write the figures to this directory.
    """
    set_threads(threads)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # what is wrong with it is said before anything is measured
    results = measure()
    print_speed(results, json)
    if out is not None:
        every = {}
        for count in range(1, (os.cpu_count() or 1) + 1):
            set_threads(count)
            every[count] = measure(with_truncated=True)
        set_threads(1)
        write_speed(every, measure_windows(), measure_step(), out, f"l2o speed --out {out}")


def estimators(
    out: Path = Path("results/estimators"),
    particles: int = 200,
    repeats: int = 50,
    rebuild: bool = False,
    threads: Threads = 1,
) -> None:
    """Compare bias, variance and cost of all meta-gradient estimators where truncation fails; write table and figure.

    Args:
        out: Directory to write.
        particles: Perturbed rules of each evolution strategy; an even number, for they come in pairs.
        repeats: Trajectories over which bias and variance are taken.
        rebuild: Only write README and figure again, from the CSV files in the directory.
    """
    set_threads(threads)
    if not rebuild:
        options = ["--out", str(out), "--particles", str(particles), "--repeats", str(repeats)]
        run_study(out, particles, repeats, shlex.join(["l2o", "estimators", *options]))
    print(write_estimator_report(out))
    print(f"table, figure and README are in {out}")
