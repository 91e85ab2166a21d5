"""The commands: `l2o train | search | resume | benchmark | report | speed | estimators | list`."""

import contextlib
import functools
import io
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import tyro

from l2o.checkpoint import available, find, load_rule, read_card
from l2o.rule import ModelBasedRule
from l2o.rules import MODEL_BASED, RULES
from meta_train.benchmark import run_benchmark
from meta_train.config import PRESETS, TrainConfig
from meta_train.distributed import DeviceName, Ranks, default_threads, join_ranks
from meta_train.estimator_report import write_estimator_report
from meta_train.estimator_study import run_study
from meta_train.lasso_benchmark import run_lasso
from meta_train.lasso_report import write_lasso_report
from meta_train.protocols import PROTOCOLS
from meta_train.recovery_benchmark import run_recovery
from meta_train.recovery_report import write_recovery_report
from meta_train.report import write_report
from meta_train.report_all import report_all
from meta_train.run_directory import RunDirectory, changes_since
from meta_train.run_training import TrainingError, run_training
from meta_train.safeguard_report import write_safeguard_report
from meta_train.safeguard_study import run_safeguard
from meta_train.search_commands import add_search_command
from meta_train.shared_run import create_run, open_run
from meta_train.speed import measure, print_speed, write_speed
from meta_train.threads import set_threads, set_threads_as_before
from meta_train.wandb_benchmark import log_benchmark
from meta_train.wandb_report import report_publisher
from meta_train.wandb_run import WandbMode, choose_wandb
from meta_train.zoo_commands import add_zoo_commands

app = tyro.extras.SubcommandApp()
train_app = tyro.extras.SubcommandApp()

Threads = Annotated[int | None, tyro.conf.arg(help="CPU threads; None takes all cores.")]
Device = Annotated[DeviceName, tyro.conf.arg(help="Where to compute; under torchrun, cuda gives every rank a GPU.")]
Wandb = Annotated[
    WandbMode, tyro.conf.arg(help="Weights & Biases: auto is online when logged in, else offline; off without wandb.")
]

STUDIES: dict[str, tuple[Callable[[Sequence[str], Path, str], None], Callable[[Path], str]]] = {
    "sparse-recovery": (run_recovery, write_recovery_report),
    "lasso-objective": (run_lasso, write_lasso_report),
    "safeguard": (run_safeguard, write_safeguard_report),
}
"""Benchmarks with measures of their own: name -> what measures, and what reports it."""

_DESCRIPTION = "Learned optimizers: train, benchmark, list. l2o --version prints the version."


def postponed(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Make a command return what it would do, so that it is run outside of tyro, which handles exceptions its way."""

    @functools.wraps(command)
    def prepare(*args, **kwargs) -> Callable[[], None]:
        return functools.partial(command, *args, **kwargs)

    return prepare


def run_and_report(run: RunDirectory, wandb: WandbMode, ranks: Ranks) -> None:
    """Train, and say where the checkpoint is."""
    try:
        summary = run_training(run, wandb, ranks)
    except TrainingError as error:
        print(f"l2o: {error}", file=sys.stderr)
        sys.exit(1)
    if ranks.is_main:
        print(", ".join(f"{name} {value:g}" for name, value in summary.items()))
        rule = load_rule(run.path)
        call = f'l2o.load_rule("{run.path}")' if isinstance(rule, ModelBasedRule) else f'l2o.load("{run.path}", params)'
        print(f"checkpoint: {find(run.path)}, {sum(p.numel() for p in rule.parameters()):,} weights   ({call})")


def train_command(preset: str, default: TrainConfig) -> Callable[..., Callable[[], None]]:
    """Return the function behind `l2o train PRESET`."""

    @postponed
    def command(
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = default,
        out: Annotated[Path | None, tyro.conf.arg(help="Run directory; None makes runs/PRESET-DATE-TIME.")] = None,
        wandb: Wandb = "auto",
        threads: Threads = None,
        device: Device = "cpu",
    ) -> None:
        if config.start_from is not None:
            config.build_rule(None)  # a wrong name is found before the run directory is made
        default_path = Path("runs") / f"{preset}-{_now()}"
        with join_ranks(device) as ranks:
            set_threads(default_threads() if threads is None else threads)
            with create_run(ranks, out, default_path, config) as run:
                run_and_report(run, wandb, ranks)

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
@postponed
def resume(
    run_directory: tyro.conf.Positional[Path],
    wandb: Wandb = "auto",
    threads: Annotated[int | None, tyro.conf.arg(help="CPU threads; None takes as many as the run began with.")] = None,
    device: Device = "cpu",
) -> None:
    """Continue an interrupted training run, to bit for bit the weights of an uninterrupted one.

    Args:
        run_directory: Directory that l2o train made.
    """
    set_threads(threads)
    with join_ranks(device) as ranks, open_run(ranks, run_directory) as run:
        if threads is None:
            set_threads_as_before(run, ranks)
        if ranks.is_main and (changes := changes_since(run.environment())):
            print(f"l2o: other last bits than without the interruption: {', '.join(changes)}", file=sys.stderr)
        run_and_report(run, wandb, ranks)


@app.command
@postponed
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
    default = Path("runs") / f"benchmark-{protocol}-{_now()}" if checkpoint else Path("results") / protocol
    directory = out or default
    if protocol in STUDIES:
        measure_it, report_it = STUDIES[protocol]
        measure_it(checkpoint, out or Path("results") / protocol, shlex.join(command))
        print(report_it(out or Path("results") / protocol))
        return
    run_benchmark(PROTOCOLS[protocol], checkpoint, directory, shlex.join(command))
    print(write_report(directory))
    sources = checkpoint or PROTOCOLS[protocol].learned
    log_benchmark(directory, [find(source) for source in sources], wandb)
    print(f"table, curves and README are in {directory}")


@app.command
@postponed
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
    if publish is not None:
        print(f"published {publish(sections)}")


@app.command
@postponed
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
@postponed
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
@postponed
def list_everything() -> None:
    """List rules, training presets, benchmark protocols and shipped checkpoints."""
    print("rules:      ", ", ".join(RULES | MODEL_BASED))
    print("presets:    ", ", ".join(PRESETS))
    print("protocols:")
    for protocol in PROTOCOLS.values():
        print(f"  {protocol.name:<16}{protocol.question}")
    print("  and:", ", ".join(STUDIES))
    print("checkpoints:")
    for name in available():
        results = read_card(find(name)).get("results", {})
        print(f"  {name:<16}{', '.join(f'{key} = {value:.4g}' for key, value in results.items())}")
        print(f"  {'':<16}card: {find(name) / 'README.md'}")


add_search_command(app, postponed)
add_zoo_commands(app, postponed)


def _now() -> str:
    return f"{datetime.now():%Y%m%d-%H%M%S}"


def parse(arguments: Sequence[str] | None) -> Callable[[], None]:
    """Return the command that a command line asks for, ready to be called.

    Raises:
        ValueError: if a config refuses its values.
        SystemExit: after help, and after tyro's explanation of an unknown command, option or choice.
    """
    explanation = io.StringIO()
    try:
        with contextlib.redirect_stderr(explanation):
            # Cascading: an option of the run may also stand behind `rule:NAME`.
            return app.cli(
                prog="l2o", description=_DESCRIPTION, args=arguments, config=(tyro.conf.CascadeSubcommandArgs,)
            )
    except SystemExit as ended:
        if refusal := _refusal(ended):
            raise refusal from None
        sys.stderr.write(explanation.getvalue())
        raise


def _refusal(error: BaseException | None) -> ValueError | None:
    """Return the ValueError of a config that made tyro exit: tyro frames it, and puts names of its own before it."""
    while error is not None:
        frames = traceback.walk_tb(error.__traceback__)
        if isinstance(error, ValueError) and any(frame.f_code.co_name == "__post_init__" for frame, _ in frames):
            return error
        error = error.__context__
    return None
