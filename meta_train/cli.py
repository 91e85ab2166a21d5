"""The command line: `l2o train | resume | benchmark | report | list`."""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from l2o.checkpoint import available, find, read_card
from l2o.rules import RULES
from meta_train.benchmark import run_benchmark
from meta_train.config import PRESETS, TrainConfig
from meta_train.distributed import DeviceName, Ranks, Silence, create_run, default_threads, join_ranks, open_run
from meta_train.estimator_report import write_estimator_report
from meta_train.estimator_study import run_study
from meta_train.protocols import PROTOCOLS
from meta_train.report import write_report
from meta_train.run_directory import RunDirectory
from meta_train.speed import measure, print_speed, write_speed
from meta_train.tracking import Progress, WandbMode
from meta_train.trainer import Trainer

app = tyro.extras.SubcommandApp()
train_app = tyro.extras.SubcommandApp()

Threads = Annotated[int | None, tyro.conf.arg(help="CPU threads; None takes all cores.")]
Device = Annotated[DeviceName, tyro.conf.arg(help="Where to compute; under torchrun, cuda gives every rank a GPU.")]
Wandb = Annotated[
    WandbMode, tyro.conf.arg(help="Weights & Biases: auto is online when logged in, else offline; off without wandb.")
]


def train_command(preset: str, default: TrainConfig) -> Callable[..., None]:
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
        with join_ranks(device) as ranks:
            set_threads(default_threads() if threads is None else threads)
            default_path = Path("runs") / f"{preset}-{datetime.now():%Y%m%d-%H%M%S}"
            run_training(create_run(ranks, out, default_path, config), wandb, ranks)

    return command


for _name, _config in PRESETS.items():
    _help = f"Meta-train on {_config.task}.".replace("<", "").replace(">", "")
    train_app.command(name=_name, help=_help)(train_command(_name, _config))
app.command(
    train_app,
    name="train",
    help="Meta-train a rule, starting from a preset. Writes a run directory, which l2o.load and l2o benchmark take. "
    "Ctrl-C stops cleanly; l2o resume goes on.",
)


@app.command
def resume(
    run_directory: tyro.conf.Positional[Path],
    wandb: Wandb = "auto",
    threads: Threads = None,
    device: Device = "cpu",
) -> None:
    """Continue an interrupted training run, to bit for bit the weights of an uninterrupted one.

    Args:
        run_directory: Directory that l2o train made.
    """
    with join_ranks(device) as ranks:
        set_threads(default_threads() if threads is None else threads)
        run_training(open_run(ranks, run_directory), wandb, ranks)


@app.command
def benchmark(
    protocol: tyro.conf.Positional[Literal[tuple(PROTOCOLS)]],  # pyright: ignore (the names are in a table)
    checkpoint: tuple[str, ...] = (),
    out: Path | None = None,
    threads: Threads = None,
) -> None:
    """Race learned rules against tuned classics on a frozen protocol; write table, curves and README.

    Args:
        protocol: What to run; l2o list describes them.
        checkpoint: Learned rules: shipped names, checkpoint or run directories; none takes the protocol's own.
        out: Directory to write; None is results/PROTOCOL.
    """
    set_threads(threads)
    command = ["l2o", "benchmark", protocol, *(["--checkpoint", *checkpoint] if checkpoint else [])]
    command += (["--out", str(out)] if out else []) + (["--threads", str(threads)] if threads else [])
    directory = out or Path("results") / protocol
    run_benchmark(PROTOCOLS[protocol], checkpoint, directory, shlex.join(command))
    print(write_report(directory))
    print(f"table, curves and README are in {directory}")


@app.command
def report(directories: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Rebuild README.md and the figures of benchmark directories from their CSV files.

    Args:
        directories: Directories that l2o benchmark wrote.
    """
    if not directories:
        raise ValueError("name at least one directory, such as results/mnist")
    for directory in directories:
        write_report(directory)
        print(f"wrote {directory}/README.md and its figures")


@app.command
def speed(threads: Threads = None, json: bool = False, out: Path | None = None) -> None:
    """Measure inner steps per CPU-second, side by side with a stock loop of nn.LSTMCells; under a minute.

    Args:
        json: Print one JSON object instead of a table.
        out: Also measure every number of threads up to this machine's cores and write the figures to this directory.
    """
    set_threads(threads)
    results = measure()
    print_speed(results, json)
    if out is not None:
        every = {}
        for count in range(1, (os.cpu_count() or 1) + 1):
            set_threads(count)
            every[count] = measure(with_truncated=True)
        write_speed(every, out, f"l2o speed --out {out}")


@app.command
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


@app.command(name="list")
def list_everything() -> None:
    """List rules, training presets, benchmark protocols and shipped checkpoints."""
    print("rules:      ", ", ".join(RULES))
    print("presets:    ", ", ".join(PRESETS))
    print("protocols:")
    for protocol in PROTOCOLS.values():
        print(f"  {protocol.name:<16}{protocol.question}")
    print("checkpoints:")
    for name in available():
        results = read_card(find(name)).get("results", {})
        print(f"  {name:<16}{', '.join(f'{key} = {value:.4g}' for key, value in results.items())}")


def run_training(run: RunDirectory, wandb: WandbMode, ranks: Ranks) -> None:
    """Train to the end or to the first SIGINT or SIGTERM on any rank, which ends the run with a checkpoint."""
    progress = Progress(run, wandb) if ranks.is_main else Silence()
    trainer = Trainer(run, progress, ranks)

    def stop(signum, frame):
        trainer.stop_requested = True
        if ranks.is_main:
            print("\nstopping after this outer step …", file=sys.stderr)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        summary = trainer.train()
    finally:
        progress.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
    finished = trainer.outer_step == run.config.outer_steps
    if not ranks.is_main:
        sys.exit(0 if finished else 130)
    print(", ".join(f"{name} {value:g}" for name, value in summary.items()))
    if not finished:
        raise KeyboardInterrupt(f"stopped with a checkpoint; continue with: l2o resume {run.path}")
    print(f'checkpoint: {find(run.path)}   (l2o.load("{run.path}", params))')


def set_threads(threads: int | None) -> None:
    """Set torch's CPU threads.

    Raises:
        ValueError: if fewer than one is asked for.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if threads is not None:
        torch.set_num_threads(threads)


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a wrong value or file gives one line and exit status 2, an interruption 130."""
    try:
        # Cascading: an option of the run may also stand behind `rule:NAME`.
        config = (tyro.conf.CascadeSubcommandArgs,)
        app.cli(prog="l2o", description="Learned optimizers: train, benchmark, list.", args=arguments, config=config)
    except KeyboardInterrupt as interruption:
        print(f"l2o: {str(interruption) or 'interrupted'}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"l2o: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
