"""The objective of the LASSO against CPU time: a learned rule with a safeguard against the classics.

`lasso_race` says what is measured, `lasso_settings` on what; `lasso_report` turns the files into a README and a figure.
"""

import csv
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from l2o.checkpoint import find, load_rule, read_card, save_rule
from l2o.rule import ModelBasedRule
from l2o.rules import ADMM, FISTA, ISTA, ADMMConfig, FISTAConfig, Safeguarded
from meta_train import lasso_settings as chosen
from meta_train.lasso_race import TOLERANCES, Methods, Row, keep_memory, optima, points, race_all, setup_ms, summarise
from meta_train.lasso_settings import SETTINGS, STEPS, TRAINING, UNSEEN, rule_name
from meta_train.lasso_solvers import reference_rows
from meta_train.lasso_tuning import tune_admm
from meta_train.run_directory import describe_environment
from tasks import Lasso


def run_lasso(checkpoints: Sequence[str], out: Path, command: str) -> None:
    """Race all methods, write summary.csv, curves.csv, unseen.csv, admm.csv, lasso.json; train what `out`/rules lacks.

    Args:
        checkpoints: none can be given; the rules are trained by the command that the README states.
        command: what was typed, for the README.

    Raises:
        ValueError: if checkpoints are given.
        OSError: if `out` cannot be written.
        DataError: if the published matrix is not there.
    """
    if checkpoints:
        raise ValueError("lasso-objective trains its own rules; remove its rules/ to train them anew")
    keep_memory()
    torch.set_num_threads(1)
    environment = describe_environment()  # before the first file makes the checkout differ from its commit
    out.mkdir(parents=True, exist_ok=True)
    rules = {setting: trained(setting, out / "rules") for setting in SETTINGS}
    admm, tried = {}, []
    for setting, family in SETTINGS.items():
        admm[setting], rows = tune_admm(family)
        tried += [{"setting": setting, **row} for row in rows]
        print(f"{setting}: {admm[setting]}", flush=True)
    tables = {"admm": tried, "summary": [], "curves": [], "unseen": []}
    raced = {setting: _race_all(setting, rules[setting], admm[setting], tables) for setting in SETTINGS}
    for name, family in UNSEEN.items():
        tables["unseen"].append({"setting": name, **_compare(family, rules["λ = 0.1"][0], admm)})
        print(tables["unseen"][-1], flush=True)
    for name, rows in tables.items():
        _write_csv(out / f"{name}.csv", rows)
    facts = _facts(command, raced, admm) | {"environment": environment}
    (out / "lasso.json").write_text(json.dumps(facts, indent=2) + "\n")


def _facts(command: str, raced: dict[str, tuple[float, list[str]]], admm: dict[str, ADMMConfig]) -> Row:
    facts = {
        "command": command,
        "gaps": {setting: gap for setting, (gap, _) in raced.items()},
        "missing": sorted({name for _, missing in raced.values() for name in missing}),
        "training": TRAINING,
        "setup_ms": setup_ms(),
        "problems": chosen.PROBLEMS,
    }
    facts["admm"] = {name: {"rho": config.rho, "relaxation": config.relaxation} for name, config in admm.items()}
    facts["unseen"] = {name: str(family) for name, family in UNSEEN.items()}
    return facts


def _race_all(
    setting: str, trained: tuple[ModelBasedRule, Row], admm: ADMMConfig, tables: dict[str, list[Row]]
) -> tuple[float, list[str]]:
    """Add the rows of a setting to the tables; return the largest duality gap of F* and the solvers left out."""
    family = SETTINGS[setting]
    problem = family.problem(family.sample_tasks(chosen.PROBLEMS, torch.Generator().manual_seed(chosen.TEST_CODES)))
    best, row = optima(problem), {}
    for name, run in race_all(problem, _methods(trained[0], admm), best).items():
        facts = trained[1] if name.startswith("learned") else _facts_of(name)
        row = {"setting": setting, "method": name, **summarise(run), **facts}
        tables["summary"].append(row)
        tables["curves"] += [{"setting": setting, "method": name, **point} for point in points(run)]
        print(f"{setting}: {name}: {row}", flush=True)
    rows, missing = reference_rows(problem, best, min(chosen.REFERENCE_PROBLEMS, chosen.PROBLEMS), row)
    tables["summary"] += [{"setting": setting, **row} for row in rows]
    return best.gap, missing


def _facts_of(name: str) -> Row:
    """Return weights and training time of a shipped rule, and none for a classic."""
    if name not in chosen.MODEL_FREE:
        return {"parameters": 0, "train_cpu_s": ""}
    seconds = read_card(find(name)).get("training", {}).get("cpu_s", "")
    return {"parameters": sum(p.numel() for p in load_rule(name).parameters()), "train_cpu_s": seconds}


def trained(setting: str, folder: Path) -> tuple[ModelBasedRule, Row]:
    """Return a setting's learned rule and what the table says of it, trained now if it is not in the folder."""
    path = folder / rule_name(SETTINGS[setting].strength)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            begun = resource.getrusage(resource.RUSAGE_CHILDREN)
            options = [*TRAINING[setting].split(), "--out", f"{scratch}/run", "--wandb", "off", "--threads", "1"]
            subprocess.run([sys.executable, "-m", "meta_train.cli", "train", "sparse", *options], check=True)
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
            save_rule(load_rule(f"{scratch}/run"), path, training={"cpu_s": round(seconds, 1)})
    rule = load_rule(str(path))
    assert isinstance(rule, ModelBasedRule)
    seconds = read_card(path).get("training", {}).get("cpu_s", "")
    return rule, {"parameters": sum(p.numel() for p in rule.parameters()), "train_cpu_s": seconds}


def _methods(learned: ModelBasedRule, admm: ADMMConfig) -> Methods:
    rules = {
        "ISTA": ISTA(), "FISTA": FISTA(FISTAConfig(restart="none")), "FISTA-restart": FISTA(), "ADMM": ADMM(admm),
        "FISTA + Newton": Safeguarded(None),
    }  # fmt: skip
    methods: Methods = {name: (rule, STEPS[name]) for name, rule in rules.items()}
    methods |= {name: (load_rule(name), steps) for name, steps in chosen.MODEL_FREE.items()}
    methods["learned"] = learned, learned.layers or 1
    methods["learned + safeguarded"] = Safeguarded(learned), chosen.SAFEGUARDED_STEPS
    return methods


def _compare(family: Lasso, learned: ModelBasedRule, admm: dict[str, ADMMConfig]) -> Row:
    """Return the times of FISTA-restart, ADMM and the safeguarded rule on a family, the median of races in turn."""
    problem = family.problem(family.sample_tasks(chosen.PROBLEMS, torch.Generator().manual_seed(chosen.UNSEEN_CODES)))
    best = optima(problem)
    config = admm.get(f"λ = {family.strength:g}", admm["λ = 0.1"])
    rules = {"fista": FISTA(), "ours": Safeguarded(learned), "admm": ADMM(config)}
    methods = {name: (rule, chosen.UNSEEN_STEPS) for name, rule in rules.items()}
    runs = race_all(problem, methods, best, count=False)
    row: Row = {"gap": f"{best.gap:.1e}", "accepted": f"{runs['ours'].accepted:.3f}"}
    for tolerance in TOLERANCES:
        label = f"{tolerance:.0e}"
        known = {name: summarise(run)[f"ms_mean_{label}"] for name, run in runs.items()}
        row |= {f"{name}_ms_{label}": milliseconds for name, milliseconds in known.items()}
        fista, ours = known["fista"], known["ours"]
        row[f"ratio_{label}"] = f"{float(ours) / float(fista):.3f}" if ours and fista else ""
    return row


def _write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
