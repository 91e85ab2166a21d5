"""Neural art: a learned rule against tuned classics, on photographs, paintings and sizes it was not trained on.

`art_settings` says on what, `art_race` what is measured, `art_tuning` how learning rates are chosen; `art_report` turns
the files into a README, a figure and a contact sheet. Every batch that was painted is kept in `out`/.cache, so that a
run that was interrupted goes on, and a second one only writes the files again.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2o.checkpoint import load_rule
from l2o.rule import UpdateRule
from l2o.rules import SobolevAdam, SobolevAdamConfig
from meta_train import art_settings as chosen
from meta_train.art_race import Race, Run, lbfgs_racer, racer
from meta_train.art_sheet import write_sheet
from meta_train.art_tuning import CRITERIA, scores, tune
from meta_train.baselines import CLASSICS
from meta_train.run_directory import describe_environment
from tasks.task import Split

Row = dict[str, Any]


class Entry(NamedTuple):
    """One method of one setting."""

    method: str
    kind: str
    options: str
    """Learning rate and the like, for the table."""
    tried: int
    """How many options were tried."""
    run: Run


def run_art(checkpoints: Sequence[str], out: Path, command: str) -> None:
    """Race all methods; write summary.csv, curves.csv, paired.csv, tuning.csv, study.json and contact-sheet.png.

    Args:
        checkpoints: learned rules; none takes the shipped ones.
        command: what was typed, for the README.

    Raises:
        OSError: if `out` cannot be written.
        CheckpointError: if a checkpoint cannot be loaded.
        DataError: if L2O_DATA has no photographs, paintings or network.
    """
    rules = {Path(source).resolve().name: load_rule(source) for source in checkpoints or chosen.LEARNED}
    environment = describe_environment()  # before files are written, which git would call changes
    (out / ".cache").mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[Row]] = {"summary": [], "curves": [], "paired": [], "tuning": []}
    sheet = {}
    for name, setting in chosen.SETTINGS.items():
        entries = list(_entries(name, setting, rules, out / ".cache", tables["tuning"]))
        tables["summary"] += summarise(name, setting, entries)
        tables["curves"] += [row for entry in entries for row in _curve(name, setting, entry)]
        tables["paired"] += [
            row for mine in entries for other in entries
            if mine.kind == "learned" and other is not mine for row in compare(name, mine, other)
        ]  # fmt: skip
        sheet[name] = {entry.method: entry.run.pictures for entry in entries if not entry.method.endswith("(end)")}
    for name, rows in tables.items():
        _write_csv(out / f"{name}.csv", rows)
    write_sheet(out / "contact-sheet.png", sheet)
    facts = {"command": command, "settings": _describe(), "environment": environment}
    (out / "study.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def _entries(
    name: str, setting: chosen.Setting, rules: dict[str, UpdateRule], cache: Path, tuning: list[Row]
) -> Iterator[Entry]:
    """Yield every method's race on the test pairs, the classics tuned when their turn comes."""
    for label, rule in rules.items():
        yield Entry(label, "learned", "", 0, paint(racer(rule), f"{label} {_digest(rule)}", setting, "test", cache))
    for method in setting.methods:
        best, tried, races = _tune(method, setting, cache)
        tuning += [{"setting": name, "method": method, "options": option, **found} for option, found in tried.items()]
        for criterion in CRITERIA:
            option, label = best[criterion], method + (" (end)" if criterion == "end" else "")
            run = paint(races(option), _label(method, option), setting, "test", cache)
            print(f"{name}: {label}, {option}: {scores(run.losses / setting.factor)}", flush=True)
            kind = "control" if method == chosen.CONTROL else "classic"
            yield Entry(label, kind, option, len(tried), run)


def _tune(method: str, setting: chosen.Setting, cache: Path) -> tuple[dict[str, str], dict[str, Row], Any]:
    """Return the best options for each criterion, the scores of all, and what makes a race of one."""

    def losses(option: str) -> Tensor:
        return paint(races(option), _label(method, option), setting, "outer_valid", cache).losses / setting.factor

    if method == "L-BFGS":

        def races(option: str) -> Race:
            lr, history = option.removeprefix("lr ").split(", history ")
            return lbfgs_racer(float(lr), int(history))

        tried = {f"lr {lr:g}, history {history}": {} for lr, history in chosen.LBFGS_OPTIONS}
        tried = {option: scores(losses(option)) for option in tried}
        return {name: min(tried, key=lambda option: tried[option][name]) for name in CRITERIA}, tried, races

    def races(option: str) -> Race:
        lr = float(option)
        return racer(SobolevAdam(SobolevAdamConfig(lr)) if method == chosen.CONTROL else CLASSICS[method](lr))

    best, found = tune(lambda lr: losses(f"{lr:.4g}"), chosen.STARTS[method])
    tried = {f"{lr:.4g}": values for lr, values in sorted(found.items())}
    return {name: f"{lr:.4g}" for name, lr in best.items()}, tried, races


def _label(method: str, option: str) -> str:
    """Name what is painted with, for the cache."""
    return f"{method} {option}" + (f" {SobolevAdamConfig(float(option))}" if method == chosen.CONTROL else "")


def paint(race: Race, label: str, setting: chosen.Setting, split: Split, cache: Path) -> Run:
    """Return a race on the pairs of a split, some pairs at a time, each of which is done once and kept."""
    tasks = setting.tasks(split)
    n_pairs, at_a_time = len(tasks["style"]), 4 if setting.family.size <= chosen.BASE else 1
    parts = []
    for first in range(0, n_pairs, at_a_time):
        some = {name: tensor[first : first + at_a_time] for name, tensor in tasks.items()}
        key = f"{label} | {setting.family} | {setting.steps} | {split} | {some}"
        path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.pt"
        if not path.exists():
            found = race(setting.family, some, setting.steps, split, chosen.SHOWN_STEP)
            fresh = path.with_suffix(f".{os.getpid()}")
            torch.save(found._asdict(), fresh)
            fresh.replace(path)
        parts.append(Run(**torch.load(path, weights_only=True)))
    losses, cpu_s, pictures = zip(*parts, strict=True)
    return Run(torch.cat(losses, 1), torch.cat(cpu_s), torch.cat(pictures))


def summarise(name: str, setting: chosen.Setting, entries: Sequence[Entry]) -> list[Row]:
    """Return a row of summary.csv for each method; losses are those of the default weights."""
    rows, sums = [], {}
    for method, kind, options, tried, run in entries:
        losses = run.losses / setting.factor
        logs, sums[method] = losses.log(), losses[:-1].sum(0)
        row = {"setting": name, "method": method, "kind": kind, "seeds": losses.shape[1], "steps": setting.steps}
        row |= {"options": options, "tried": tried, "mean_log": f"{logs[1:].mean().item():.5g}"}
        for count in (*chosen.COUNTS, "final"):
            at = logs[-1 if count == "final" else count]
            row |= {f"log_{count}": f"{at.mean().item():.5g}", f"log_{count}_sd": f"{at.std().item():.4g}"}
        row |= {"sum_loss": f"{sums[method].mean().item():.5g}", "sum_loss_sd": f"{sums[method].std().item():.4g}"}
        row |= {"diverged": int((~torch.isfinite(losses).all(0)).sum()), "cpu_s": f"{run.cpu_s.mean().item():.4g}"}
        rows.append(row)
    classics = [entry.method for entry in entries if entry.kind == "classic"]
    best = min(classics, key=lambda method: sums[method].nan_to_num(torch.inf).mean().item())
    for row in rows:
        row |= {"best_classic": best, "wins": f"{(sums[row['method']] < sums[best]).double().mean().item():.4g}"}
    return rows


def compare(name: str, mine: Entry, other: Entry) -> list[Row]:
    """Return a row for each number of steps: the paired difference of log losses with its 95 % interval (Student)."""
    from scipy.stats import t  # comes with scikit-learn

    rows = []
    differences = mine.run.losses.log() - other.run.losses.log()
    for step, found in enumerate(differences):
        half = t.ppf(0.975, len(found) - 1) * found.std().item() / len(found) ** 0.5
        mean, wins = found.mean().item(), (found < 0).double().mean().item()
        numbers = {"difference": mean, "low": mean - half, "high": mean + half, "lower_on": wins}
        texts = {key: f"{value:.4g}" for key, value in numbers.items()}
        rows.append({"setting": name, "method": mine.method, "against": other.method, "step": step} | texts)
    return rows


def _curve(name: str, setting: chosen.Setting, entry: Entry) -> Iterator[Row]:
    logs = (entry.run.losses / setting.factor).log()
    quantiles = logs.nan_to_num(torch.inf).quantile(torch.tensor([0.25, 0.75], dtype=logs.dtype), dim=1)
    for step, values in enumerate(torch.stack([logs.mean(1), logs.std(1), *quantiles], 1).tolist()):
        columns = zip(("mean_log", "sd_log", "q25_log", "q75_log"), values, strict=True)
        yield {"setting": name, "method": entry.method, "step": step} | {key: f"{value:.5g}" for key, value in columns}


def _describe() -> Row:
    return {
        name: {
            "family": str(setting.family), "pairs": setting.pairs, "steps": setting.steps,
            "tuning_pairs": setting.tuning_pairs,
        }
        for name, setting in chosen.SETTINGS.items()
    }  # fmt: skip


def _digest(rule: UpdateRule) -> str:
    content = hashlib.sha256(repr(getattr(rule, "config", "")).encode())
    for name, tensor in rule.state_dict().items():
        content.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


def _write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
