"""The study of robust sparse coding: what it measures, on small problems, and that its report follows the numbers."""

import csv
import json

import pytest
import torch

from meta_train import bmo_sparse_coding
from meta_train.bmo_report import write_sparse_coding_report
from meta_train.bmo_rules import AggregatedGKM, gkm_rule, iterates
from meta_train.bmo_sparse_coding import Learned, follow, reference, run_sparse_coding, summarised, tuned_ladmm
from meta_train.bmo_tail import continued
from meta_train.bmo_training import TrainingPlan, train, tuned_d_ladmm
from tasks.robust_sparse_coding import RobustSparseCoding

TASK = RobustSparseCoding(24, 48, 0.03)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bmo_sparse_coding, "RobustSparseCoding", lambda: TASK)
    plan = TrainingPlan(beyond=3, signals=64, batch=16, iterations=2)
    sizes = {
        "LAYERS": 3,
        "BEYOND": 12,
        "TEST_SIGNALS": 16,
        "CERTIFIED": 8,
        "REFERENCE_STEPS": 50,
        "TRIAL": 1,
        "TUNING_SIGNALS": 16,
        "SEEDS": (1, 2),
    }
    for name, value in sizes.items():
        monkeypatch.setattr(bmo_sparse_coding, name, value)
    monkeypatch.setattr(bmo_sparse_coding, "LEARNED", dict.fromkeys(bmo_sparse_coding.LEARNED, plan))


def test_reference_is_certified_where_the_code_is_the_solution():
    signals = TASK.sample(8, torch.Generator().manual_seed(0))
    best, gap = reference(TASK, signals.x.double(), signals.value.double())
    assert bool((best <= signals.value.double()).all()) and 0 <= gap < 1e-2


@pytest.mark.parametrize("kind", ["UNH", "GKM with D_net", "BMO"])
def test_training_lowers_the_suboptimality_and_every_layer_stays_averaged(kind):
    rule = gkm_rule(TASK, 4, network=kind == "GKM with D_net")
    rule = AggregatedGKM(rule, 4) if kind == "BMO" else rule
    history = train(rule, TASK, TrainingPlan(layers=4, beyond=4, signals=256, batch=64, iterations=15, lr=0.15))
    assert history[-1][1] < 0.7 * history[0][1]
    signals = TASK.sample(8, torch.Generator().manual_seed(1))
    (rule if not isinstance(rule, AggregatedGKM) else rule.gkm).check(TASK.problem(signals.x))
    rule = continued(rule, TASK, 8)
    optimum, _ = reference(TASK, signals.x.double(), signals.value.double())
    rows = follow(Learned(kind, 0, rule), TASK, signals.x.double(), optimum)
    assert rows[-1]["change"] < 1e-2 * rows[1]["change"] and rows[-1]["suboptimality"] < 0.1 * rows[3]["suboptimality"]


def test_aggregation_is_the_formula_of_its_docstring():
    torch.manual_seed(0)
    signals = TASK.sample(3, torch.Generator().manual_seed(1)).x.double()
    gkm, problem = gkm_rule(TASK, 2).double(), TASK.problem(signals)
    rule = AggregatedGKM(gkm, 2, weight=0.3, descent=0.5).double()
    start = gkm.start(problem, 0.1 * torch.randn(3, TASK.columns, dtype=torch.float64))
    z = start.x.clone().requires_grad_()
    smooth = (0.1 * signals.abs().mean(-1, keepdim=True)).square()
    both = [z, signals - z @ TASK.dictionary.double().mT]
    (slope,) = torch.autograd.grad(sum((v.square() + smooth).sqrt().sum() for v in both), z)
    zero = torch.zeros_like(signals)
    for step, size in ((0, 0.5), (1, 0.25), (2, 0.0)):
        moved = gkm.metric(problem, step).solve(type(start)(slope, zero, zero))
        expected = [
            0.3 * (u - size * v) + 0.7 * t for u, v, t in zip(start, moved, gkm.map(problem, start, step), strict=True)
        ]
        _, found = rule.iterate(problem, start.x, start, step)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)  # log_descent was rounded to float32


def test_tuned_d_ladmm_prefers_a_rate_that_trains():
    x = TASK.sample(16, torch.Generator().manual_seed(0)).x
    plan = TrainingPlan(layers=3, beyond=0, signals=64, batch=16)
    assert tuned_d_ladmm(TASK, x, plan, (1.0, 0.005), 10)[0] == 0.005


def test_tuned_ladmm_is_the_best_of_its_grid(monkeypatch):
    signals = TASK.sample(16, torch.Generator().manual_seed(0))
    best = tuned_ladmm(TASK, signals.x, bmo_sparse_coding.PROVEN)
    value = _value(best, signals.x)
    for penalty in bmo_sparse_coding.PENALTIES:
        monkeypatch.setattr(bmo_sparse_coding, "PENALTIES", (penalty,))
        assert value <= _value(tuned_ladmm(TASK, signals.x, bmo_sparse_coding.PROVEN), signals.x) + 1e-6


def _value(rule, x) -> float:
    *_, (z, _, _) = iterates(rule, TASK, x, bmo_sparse_coding.LAYERS)
    return float(TASK.problem(x).value(z).mean())


def test_the_study_writes_what_its_report_reads(small, tmp_path):
    run_sparse_coding((), tmp_path, "l2o benchmark bmo-sparse-coding")
    assert "D-LADMM" in write_sparse_coding_report(tmp_path)
    assert (tmp_path / "sparse-coding.png").stat().st_size > 10_000
    assert "## Verdict" in (tmp_path / "README.md").read_text()


@torch.no_grad()
def test_a_change_is_the_larger_of_two_steps_of_each_signal_and_of_all_as_one_vector():
    signals = TASK.sample(4, torch.Generator().manual_seed(1), torch.float64)
    rule = continued(gkm_rule(TASK, 2), TASK, 4)
    optimum, _ = reference(TASK, signals.x, signals.value)
    rows = follow(Learned("UNH", 0, rule), TASK, signals.x, optimum)
    u = torch.stack([torch.cat(point, -1) for point in iterates(rule, TASK, signals.x, 40)])
    moves = u[1:] - u[:-1]
    each, whole = moves.norm(dim=-1) / u[:-1].norm(dim=-1), moves.norm(dim=(1, 2)) / u[:-1].norm(dim=(1, 2))
    for layer in (10, 40):
        assert rows[layer - 1]["change"] == pytest.approx(float(whole[layer - 3 : layer - 1].max()), rel=1e-12)
        found = float(each[layer - 3 : layer - 1].amax(0).mean())
        assert rows[layer - 1]["mean_change"] == pytest.approx(found, rel=1e-12)


def test_summary_is_the_mean_with_its_ends_and_the_worst_seed():
    one = {
        "method": "UNH",
        "seed": 1,
        "layer": 3,
        "suboptimality": 1.0,
        "worst": 4.0,
        "change": 0.5,
        "mean_change": 0.2,
        "median_change": 0.1,
        "moving": 0.9,
    }
    two = one | {"seed": 2, "suboptimality": 3.0, "worst": 2.0, "change": 0.3, "mean_change": 0.4}
    (row,) = summarised([one, two], {"UNH": {"cpu_s": 7.0}})
    assert (row["suboptimality"], row["suboptimality_low"], row["suboptimality_high"]) == (2.0, 1.0, 3.0)
    assert (row["change_high"], row["worst"], row["n_seeds"], row["train_cpu_s"]) == (0.5, 4.0, 2, 7.0)
    assert (row["mean_change_low"], row["mean_change_high"], row["moving"]) == (0.2, 0.4, 0.9)


def test_the_verdict_follows_the_numbers(small, tmp_path):
    run_sparse_coding((), tmp_path, "l2o benchmark bmo-sparse-coding")
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        suboptimality, change = ("1e-3", "1e-7") if row["method"] == "BMO" else ("2e-2", "1e-2")
        row |= {"suboptimality": suboptimality, "suboptimality_low": suboptimality, "suboptimality_high": suboptimality}
        row |= {"change": change, "change_low": change, "change_high": change}
        if row["method"] == "BMO":
            row["suboptimality_high"] = "2e-3"  # the worst seed decides
    with (tmp_path / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_sparse_coding_report(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "BMO is 10.0 to 20.0 × below LADMM at 3 layers; reaches 10 ×" in text
    assert "BMO at 12 layers, from 6 on by the end, which is not learned: 1.0e-07 to 1.0e-07, at most 1e-06" in text
    assert "D-LADMM at 12 layers: 1.0e-02 to 1.0e-02, NOT down to" in text


def test_wrong_uses_are_refused(tmp_path):
    for options in ({"weight": 1.0}, {"descent": 0.0}):
        with pytest.raises(ValueError, match="0 < weight < 1"):
            AggregatedGKM(gkm_rule(TASK, 1), 1, **options)
    with pytest.raises(ValueError, match="takes no --checkpoint"):
        run_sparse_coding(("lista",), tmp_path, "")
    (tmp_path / "study.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="no such study"):
        write_sparse_coding_report(tmp_path)
