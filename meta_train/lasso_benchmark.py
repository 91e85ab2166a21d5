"""The objective of the LASSO against CPU time: a learned rule with a safeguard against the classics.

`lasso_race` says what is measured, `lasso_settings` on what; `lasso_report` turns the files into a README and a figure.
"""

import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from l2o.checkpoint import load_rule, read_card, save_rule
from l2o.problem import Problem
from l2o.rule import ModelBasedRule
from l2o.rules import ADMM, FISTA, ISTA, ADMMConfig, FISTAConfig, Safeguarded
from meta_train import lasso_settings as chosen
from meta_train.lasso_race import TOLERANCES, Methods, Row, keep_memory, optima, points, race_all, setup_ms, summarise
from meta_train.lasso_settings import SETTINGS, STEPS, TRAINING, UNSEEN
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
    out.mkdir(parents=True, exist_ok=True)
    rules = {setting: trained(setting, out / "rules") for setting in SETTINGS}
    admm, tried = {}, []
    for setting, family in SETTINGS.items():
        admm[setting], rows = tune_admm(family)
        tried += [{"setting": setting, **row} for row in rows]
        print(f"{setting}: {admm[setting]}", flush=True)
    tables = {"admm": tried, "summary": [], "curves": [], "unseen": []}
    gaps = {setting: _race_all(setting, rules[setting], admm[setting], tables) for setting in SETTINGS}
    for name, family in UNSEEN.items():
        tables["unseen"].append({"setting": name, **_compare(family, rules["λ = 0.1"][0], admm)})
        print(tables["unseen"][-1], flush=True)
    for name, rows in tables.items():
        _write_csv(out / f"{name}.csv", rows)
    (out / "lasso.json").write_text(json.dumps(_facts(command, gaps, admm), indent=2) + "\n")


def _facts(command: str, gaps: dict[str, float], admm: dict[str, ADMMConfig]) -> Row:
    facts = {
        "command": command,
        "gaps": gaps,
        "training": TRAINING,
        "setup_ms": setup_ms(),
        "problems": chosen.PROBLEMS,
    }
    facts["admm"] = {name: {"rho": config.rho, "relaxation": config.relaxation} for name, config in admm.items()}
    facts["unseen"] = {name: str(family) for name, family in UNSEEN.items()}
    return facts | {"environment": describe_environment()}


def _race_all(
    setting: str, trained: tuple[ModelBasedRule, Row], admm: ADMMConfig, tables: dict[str, list[Row]]
) -> float:
    """Add the rows of a setting to the tables; return the largest duality gap of F*."""
    family = SETTINGS[setting]
    problem = family.problem(family.sample_tasks(chosen.PROBLEMS, torch.Generator().manual_seed(chosen.TEST_CODES)))
    optimum, gap = optima(problem)
    row: Row = {}
    for name, run in race_all(problem, _methods(trained[0], admm), optimum).items():
        facts = trained[1] if name.startswith("learned") else {"parameters": 0, "train_cpu_s": ""}
        row = {"setting": setting, "method": name, **summarise(run), **facts}
        tables["summary"].append(row)
        tables["curves"] += [{"setting": setting, "method": name, **point} for point in points(run)]
        print(f"{setting}: {name}: {row}", flush=True)
    tables["summary"].append({"setting": setting, **_coordinate_descent(problem, optimum, row)})
    return gap


def trained(setting: str, folder: Path) -> tuple[ModelBasedRule, Row]:
    """Return a setting's learned rule and what the table says of it, trained now if it is not in the folder."""
    path = folder / f"firm-alista-{SETTINGS[setting].strength:g}"
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
    methods["learned"] = learned, learned.layers or 1
    methods["learned + safeguarded"] = Safeguarded(learned), chosen.SAFEGUARDED_STEPS
    return methods


def _coordinate_descent(problem: Problem, optimum: Tensor, like: Row) -> Row:
    """Return the row of scikit-learn with a precomputed Gram matrix, its tolerance halved until F is met."""
    from sklearn.linear_model import Lasso as CoordinateDescent  # an extra that only this row needs

    A, count = problem.operator.matrix.double(), chosen.COORDINATE_DESCENT_PROBLEMS  # pyright: ignore
    gram, matrix = (A.mT @ A).numpy(), A.numpy()
    row: Row = dict.fromkeys(key for key in like if key != "setting") | {"method": "scikit-learn CD (50 problems)"}
    for tolerance in TOLERANCES:
        for sklearn_tolerance in (10.0**-k for k in range(2, 12)):
            rule = CoordinateDescent(
                problem.regularizer.strength / len(matrix), fit_intercept=False, precompute=gram, tol=sklearn_tolerance,  # pyright: ignore
                max_iter=10_000,
            )  # fmt: skip
            begun, codes = time.process_time(), []
            for b in problem.b[:count].double().numpy():
                codes.append(torch.from_numpy(rule.fit(matrix, b).coef_.copy()))
            seconds = time.process_time() - begun
            part = Problem(problem.operator, problem.b[:count], problem.regularizer).double()
            errors = (part.value(torch.stack(codes)) - optimum[:count]) / optimum[:count]
            if errors.mean() <= tolerance:
                row[f"ms_mean_{tolerance:.0e}"] = f"{1000 * seconds / count:.4g}"
                break
    return row | {"parameters": 0}


def _compare(family: Lasso, learned: ModelBasedRule, admm: dict[str, ADMMConfig]) -> Row:
    """Return the times of FISTA-restart, ADMM and the safeguarded rule on a family, the median of races in turn."""
    problem = family.problem(family.sample_tasks(chosen.PROBLEMS, torch.Generator().manual_seed(chosen.UNSEEN_CODES)))
    optimum, gap = optima(problem)
    config = admm.get(f"λ = {family.strength:g}", admm["λ = 0.1"])
    rules = {"fista": FISTA(), "ours": Safeguarded(learned), "admm": ADMM(config)}
    methods = {name: (rule, chosen.UNSEEN_STEPS) for name, rule in rules.items()}
    runs = race_all(problem, methods, optimum, count=False)
    row: Row = {"gap": f"{gap:.1e}", "accepted": f"{runs['ours'].accepted:.3f}"}
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
