"""Log a finished benchmark on Weights & Biases: summary, tables, curves and the learned rules' checkpoints."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meta_train.report_results import Results, Row, read_results, rows_of
from meta_train.wandb_run import WandbMode, finish_wandb, log_model, open_wandb

_NUMBERS = ("sum_loss", "sum_loss_sd", "sum_loss_median", "final_loss", "final_loss_sd", "wins", "diverged", "cpu_s")
"""Columns of summary.csv that go into the run's summary."""


def run_name(protocol: str) -> str:
    """Return the name that the runs of a protocol have."""
    return f"benchmark-{protocol}"


def metric_name(setting: str, method: str) -> str:
    """Return the name under which a method's mean loss is logged; W&B groups charts by what stands before the slash."""
    return f"{setting.replace('/', '|')}/{method.replace('/', '|')}"


def log_benchmark(directory: Path, checkpoints: Sequence[Path], mode: WandbMode) -> None:
    """Log what a benchmark's files say, as a run of its own; nothing happens where W&B is off or not installed.

    Args:
        directory: what `l2o benchmark` wrote.
        checkpoints: directories of the learned rules, in the order of the race.

    Raises:
        ValueError: if the directory is not a benchmark's; if online is asked for, but not to be had.
    """
    results = read_results(directory)
    name = run_name(results.protocol["name"])
    identity = (directory / "protocol.json").read_bytes()
    run = open_wandb(directory, mode, name=name, identity=identity, kind="benchmark", config=results.protocol)
    if run is None:
        return
    try:
        _log_curves(run, results)
        _log_tables(run, results)
        run.summary.update(_summary(results.summary))
        learned = dict.fromkeys(row["method"] for row in results.summary if row["kind"] == "learned")
        for label, checkpoint in zip(learned, checkpoints, strict=False):  # published weights come last, as one file
            log_model(run, f"{name}-{label}", checkpoint, {"protocol": results.protocol["name"], "label": label})
    finally:
        finish_wandb(run)


def _log_curves(run, results: Results) -> None:
    """Log the mean losses of all methods and settings, step by step."""
    history: dict[int, dict[str, float]] = {}
    for row in results.curves:
        if math.isfinite(mean := float(row["mean"])):
            history.setdefault(int(row["step"]), {})[metric_name(row["setting"], row["method"])] = mean
    for step in sorted(history):
        run.log(history[step], step=step)


def _log_tables(run, results: Results) -> None:
    import wandb

    tables = {"tables/summary": results.summary, "tables/curves": results.curves}
    tables |= {f"tables/{setting}": rows_of(results.summary, setting) for setting in results.settings}
    for name, rows in tables.items():
        columns: list[Any] = list(rows[0])
        run.log({name: wandb.Table(columns=columns, data=[[_value(row[key]) for key in columns] for row in rows])})


def _summary(rows: list[Row]) -> dict[str, float]:
    """Return "setting/method/column" → number."""
    named = {
        f"{metric_name(row['setting'], row['method'])}/{column}": float(row[column])
        for row in rows
        for column in _NUMBERS
    }
    return {name: value for name, value in named.items() if math.isfinite(value)}


def _value(text: str) -> float | str | None:
    """Return a CSV file's cell as a table's: a number where it is one, None where it is empty or not finite."""
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else None
