"""The race on the LASSO's objective: what it counts, what it reports, what it refuses."""

import csv
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

import l2o
from l2o.rules import FISTA, FirmALISTA, FirmALISTAConfig, Safeguarded
from meta_train import lasso_benchmark, lasso_solvers, lasso_tuning
from meta_train import lasso_race as module
from meta_train import lasso_settings as chosen
from meta_train.lasso_benchmark import run_lasso
from meta_train.lasso_report import write_lasso_report
from tasks import Lasso

SMALL = Lasso(rows=20, columns=40, density=0.3)


@pytest.fixture(scope="module")
def problem():
    return SMALL.problem(SMALL.sample_tasks(6, torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def best(problem):
    return module.optima(problem)


def test_optima_are_certified_and_fista_comes_to_them(problem, best):
    assert best.gap <= 1e-11
    run = module.race(problem.double(), FISTA(), 400, best)
    assert run.f1 == 1.0
    torch.testing.assert_close(problem.double().value(best.x), best.values)
    assert run.suboptimality[-1].abs().max() < 1e-10
    assert (run.cpu_ms.diff() >= 0).all()


def test_a_step_of_fista_is_one_product(problem, best):
    run = module.race(problem, FISTA(), 5, best)
    # Aᵀb at first, 2mn operations, is half a product where n = 2m
    torch.testing.assert_close(run.products, torch.arange(1.5, 6.0, dtype=torch.float64))


def test_summary_names_the_first_step_below_a_tolerance():
    errors = torch.tensor([[1.0, 1e-5], [1e-4, 1e-5], [1e-7, 1e-9]], dtype=torch.float64)
    times = torch.arange(1.0, 4, dtype=torch.float64)
    row = module.summarise(module.Run(errors, times, 2 * times, float("nan")))
    assert (row["steps_mean_1e-04"], row["steps_max_1e-06"], row["ms_mean_1e-06"]) == (2, 3, "3")
    assert row["products_max_1e-04"] == "4"
    assert row["accepted"] == ""


def test_acceptance_is_in_the_row(problem, best):
    run = module.race(problem, Safeguarded(None), 60, best)
    assert 0 <= float(module.summarise(run)["accepted"]) <= 1


def test_methods_in_turn_are_as_good_as_alone_and_nothing_is_counted_unasked(problem, best):
    runs = module.race_all(problem, {"a": (FISTA(), 5), "b": (Safeguarded(None), 4)}, best, count=False)
    assert torch.equal(runs["a"].suboptimality, module.race(problem, FISTA(), 5, best).suboptimality)
    assert runs["b"].cpu_ms.shape == (4,) and runs["b"].products.isnan().all()
    assert [row["step"] for row in module.points(runs["a"])] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["lstm-lasso", "proximal-lstm-lasso"])
def test_rules_with_an_lstm_take_part_and_their_own_products_are_not_counted(problem, name, best):
    run = module.race(problem, l2o.load_rule(name), 30, best)
    assert run.suboptimality[-1].mean() < run.suboptimality[0].mean()
    assert run.products.isnan().all() and "" == module.summarise(run)["products_mean_1e-04"]


def test_support_of_the_last_iterate_is_compared_with_that_of_the_minimiser(problem, best):
    run = module.race(problem, FISTA(), 1, best)
    x = l2o.solve(FISTA(), problem, steps=1).x.abs() > 1e-3
    present = best.x.abs() > 1e-3
    scores = [f1_score(p.numpy(), f.numpy()) for p, f in zip(present, x, strict=True)]
    assert run.f1 == pytest.approx(sum(scores) / len(scores)) and run.f1 < 1
    assert module.summarise(run)["f1"] == f"{run.f1:.4f}"


def test_solvers_of_other_packages_reach_the_optimum_and_missing_ones_are_named(problem, monkeypatch, best):
    monkeypatch.setitem(lasso_solvers.SOLVERS, "celer", ("a_package_that_is_not_there", lasso_solvers._celer))
    like = {"setting": "", "accepted": "", **module.summarise(module.race(problem, FISTA(), 3, best))}
    rows, missing = lasso_solvers.reference_rows(problem, best, 4, like)
    assert "celer" in missing and rows[0]["method"] == "scikit-learn CD (4 problems)"
    for row in rows:
        assert float(row["final_mean"]) <= 1e-6 and float(row["f1"]) == 1.0 and row["accepted"] is None
        assert 0 < float(row["ms_mean_1e-04"]) and 0 < float(row["ms_mean_1e-06"])


@pytest.mark.parametrize("package", ["celer", "skglm"])
def test_celer_and_skglm_find_the_minimiser(problem, package, best):
    pytest.importorskip(package)
    double = problem.double()
    fit = lasso_solvers.SOLVERS[package][1](double)
    A, strength = double.operator.matrix.numpy(), float(double.regularizer.strength)
    x = fit(np.asfortranarray(A), double.b[0].numpy(), strength / len(A), 1e-12)
    torch.testing.assert_close(torch.from_numpy(x), best.x[0], atol=1e-6, rtol=0)  # a gap of 1e-12


def test_a_whole_race_leaves_files_that_can_be_reported(monkeypatch, tmp_path):
    """Few small problems, and an untrained rule where the trained ones would lie."""
    settings = {f"λ = {strength:g}": Lasso(20, 40, strength=strength) for strength in (0.1, 0.005)}
    for where in (lasso_benchmark, chosen):
        monkeypatch.setattr(where, "SETTINGS", settings)
        monkeypatch.setattr(where, "UNSEEN", {"other seed": Lasso(20, 40, dictionary_seed=3)})
        monkeypatch.setattr(where, "STEPS", dict.fromkeys(chosen.STEPS, 20))
    for name, value in {"PROBLEMS": 6, "MODEL_FREE": {"lstm-lasso": 5}, "UNSEEN_STEPS": 20}.items():
        monkeypatch.setattr(chosen, name, value)
    monkeypatch.setattr(lasso_tuning, "ADMM_RHOS", (0.1,))
    monkeypatch.setattr(lasso_tuning, "ADMM_PROBLEMS", 4)
    monkeypatch.setattr(lasso_benchmark, "setup_ms", lambda: 1.0)
    monkeypatch.setattr(lasso_benchmark, "keep_memory", lambda: None)
    for strength in (0.1, 0.005):
        l2o.save_rule(FirmALISTA(FirmALISTAConfig(layers=2)), tmp_path / f"rules/firm-alista-{strength:g}")
    run_lasso([], tmp_path, "l2o benchmark lasso-objective")
    tables = write_lasso_report(tmp_path)
    rows = list(csv.DictReader((tmp_path / "summary.csv").read_text().splitlines()))
    lstm = [row for row in rows if row["method"] == "lstm-lasso"]
    assert len(lstm) == 2 and all(int(row["parameters"]) > 1000 for row in lstm)
    assert tables.count("scikit-learn CD (6 problems)") == 2 and tables.count("**learned + safeguarded**") == 2
    assert all(0 <= float(row["f1"]) <= 1 for row in rows)


def test_admm_is_tuned_to_the_fewest_steps(monkeypatch):
    monkeypatch.setattr(lasso_tuning, "ADMM_RHOS", (1.0, 0.1, 1e-6))
    monkeypatch.setattr(lasso_tuning, "ADMM_RELAXATIONS", (1.0, 1.8))
    config, rows = lasso_tuning.tune_admm(SMALL, tolerance=1e-3)
    steps = {(row["rho"], row["relaxation"]): row["steps"] for row in rows}
    assert len(rows) == 6
    assert steps[config.rho, config.relaxation] == min(s for s in steps.values() if s)


def test_without_an_admm_that_comes_there_the_least_error_wins(monkeypatch):
    monkeypatch.setattr(lasso_tuning, "ADMM_RHOS", (1e-6, 0.1))
    monkeypatch.setattr(lasso_tuning, "ADMM_STEPS", 4)
    config, rows = lasso_tuning.tune_admm(SMALL)
    assert not any(row["steps"] for row in rows)
    assert min(row["error"] for row in rows if row["rho"] == config.rho) == min(row["error"] for row in rows)


def test_no_test_seed_is_a_tuning_seed():
    assert not {chosen.TEST_CODES, chosen.UNSEEN_CODES} & {chosen.TUNING_CODES, chosen.ADMM_CODES}
    assert not {family.dictionary_seed for family in chosen.UNSEEN.values()} & set(chosen.TUNING_DICTIONARIES)


def test_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match="trains its own rules"):
        run_lasso(["alista"], tmp_path, "")


def test_the_report_gives_a_verdict_from_the_files(tmp_path, problem, best):
    run, gap = module.race(problem, Safeguarded(None), 60, best), best.gap
    methods = [*chosen.STEPS, *chosen.MODEL_FREE, "learned", "learned + safeguarded"]
    facts = {"parameters": 0, "train_cpu_s": ""}
    summary = [{"setting": s, "method": m, **module.summarise(run), **facts} for s in chosen.SETTINGS for m in methods]
    curves = [{"setting": row["setting"], "method": row["method"], **p} for row in summary for p in module.points(run)]
    unseen = {
        "gap": gap,
        "accepted": 1.0,
        **{f"{w}_{t}": 1.0 for w in ("fista_ms", "ours_ms", "admm_ms") for t in ("1e-04", "1e-06")},
    }
    rows = [{"setting": "slow one", **unseen, "ratio_1e-04": 1.2, "ratio_1e-06": 0.9}]
    for name, table in (("summary", summary), ("curves", curves), ("unseen", rows)):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    facts = {
        "command": "l2o benchmark lasso-objective",
        "gaps": {"λ = 0.1": gap},
        "missing": ["celer", "skglm"],
        "training": {"λ = 0.1": "x"},
    }
    environment = {
        "time": "2026-01-01",
        "commit": "0",
        "packages": {"torch": "2"},
        "machine": {"cpu": "c", "cores": 2},
        "threads": 1,
    }
    facts["admm"] = {"λ = 0.1": {"rho": 0.1, "relaxation": 1.8}}
    facts |= {"setup_ms": 1.0, "problems": 6, "environment": environment}
    (tmp_path / "lasso.json").write_text(json.dumps(facts))
    write_lasso_report(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "**NOT reached** (slow one)" in text
    assert "Left out, for they were not installed (`pip install 'l2o[solvers]'`): celer, skglm." in text
    assert "Made on 2026-01-01 at commit 0 with torch 2,\nc, 2 cores, 1 thread.\n" in text
    assert "| support F1 |" in text and "lstm-lasso" in text
    assert "On no dictionary never seen is ADMM faster" in text and "ρ = 0.1 ‖A‖², α = 1.8" in text
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_a_foreign_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no lasso-objective benchmark"):
        write_lasso_report(tmp_path)
