"""The sparse-recovery benchmark: its measures against their definitions, its files, its report, its cards."""

import csv
import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
import torch

import l2o
from l2o.rules import ALISTA, FISTA, ISTA, ALISTAConfig, CondatVu
from meta_train import benchmark_commands, commands, recovery_benchmark, recovery_classics
from meta_train.config import PRESETS
from meta_train.config_json import to_json
from meta_train.model_card import card_text
from meta_train.recovery_benchmark import SETTINGS, Method, race, run_recovery
from meta_train.recovery_classics import CLASSICS, pose, split, tune
from meta_train.recovery_figure import line_looks, spread_out
from meta_train.recovery_measures import nmse, run, spread, support_f1
from meta_train.recovery_report import write_recovery_report
from meta_train.report_all import report_all
from tasks import Lasso

REAL = os.environ.get("L2O_DATA")
needs_sparse = pytest.mark.skipif(not REAL or not Path(REAL, "sparse").is_dir(), reason="needs L2O_DATA/sparse")
SPARSE_NAMES = ("alista", "hyperlista", "lista-cpss")


def codes(n: int = 50) -> torch.Tensor:
    return Lasso(rows=10, columns=20).sample_tasks(n, torch.Generator().manual_seed(0))["x_star"]


# ---------------------------------------------------------------- measures


def test_nmse_is_the_ratio_of_sums_in_db():
    target, x = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 1.0], [0.0, 1.0]])
    assert nmse(x, target) == pytest.approx(10 * math.log10(1 / 10))
    assert nmse(torch.zeros(2, 2), target) == 0.0


def test_the_bootstrap_interval_holds_the_ratio_and_is_that_of_the_central_limit(float64):
    target = codes(400)
    x = target + 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    ratio, low, high = spread(x, target)
    errors, sizes = (x - target).square().sum(-1), target.square().sum(-1)
    ratios = errors / errors.mean() - sizes / sizes.mean()  # the delta method
    half = 1.96 * 10 / math.log(10) * (ratios.std() / len(target) ** 0.5).item()
    assert low < ratio < high
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)  # 1,000 resamples


def test_support_f1_counts_entries_above_a_thousandth():
    target = torch.tensor([[1.0, -2.0, 0.0, 0.0]])
    assert support_f1(torch.tensor([[0.5, -1.0, 1e-4, 0.0]]), target) == 1.0
    assert support_f1(torch.tensor([[0.5, 0.0, 0.3, 0.0]]), target) == pytest.approx(0.5)
    assert support_f1(torch.zeros(1, 4), target) == 0.0


def test_a_race_gives_what_solve_gives():
    family = Lasso(rows=10, columns=20, strength=0.1)
    tasks = family.sample_tasks(8, torch.Generator().manual_seed(0))
    row, curve = race(family, tasks, Method("ISTA", "classic", ISTA(), 0.1, {}), 16)
    expected = l2o.solve(ISTA(), family.problem(tasks), steps=16).x
    assert run(ISTA(), family.problem(tasks), 16)[-1].equal(expected)
    assert float(row["nmse"]) == pytest.approx(nmse(expected, tasks["x_star"]), abs=0.005)
    assert [point["step"] for point in curve] == list(range(17)) and float(curve[0]["nmse"]) == 0.0
    assert float(curve[-1]["nmse"]) == pytest.approx(float(row["nmse"]), abs=0.006)


# ---------------------------------------------------------------- classics


def test_condat_vu_with_the_norm_split_off_minimises_the_same_objective(float64):
    family = Lasso(rows=30, columns=10, density=0.5)  # strongly convex: it gets there soon
    problem = family.problem(family.sample_tasks(4, torch.Generator().manual_seed(0)))
    expected = l2o.solve(FISTA(), problem, steps=200, history=False).x
    parted = split(problem)
    torch.testing.assert_close(parted.value(expected), problem.value(expected))
    torch.testing.assert_close(run(CondatVu(), parted, 200)[-1], expected)
    apart, whole = (run(CondatVu(), posed, 30)[-1] for posed in (parted, problem))
    assert not torch.equal(apart, whole)
    torch.testing.assert_close(whole, run(ISTA(), problem, 30)[-1])  # unsplit, it is ISTA


@pytest.mark.parametrize("name", CLASSICS)
def test_the_option_that_is_chosen_beats_every_other_one(name):
    family = Lasso(rows=45, columns=90)
    tasks = family.sample_tasks(6, torch.Generator().manual_seed(0))
    best, tried = tune(name, family, tasks, 4)
    scores = [
        nmse(run(option.rule, pose(family, tasks, option.rule, option.strength), 4)[-1], tasks["x_star"])
        for option in CLASSICS[name]
    ]
    chosen = nmse(run(best.rule, pose(family, tasks, best.rule, best.strength), 4)[-1], tasks["x_star"])
    assert chosen == min(score for score in scores if score == score) and tried == len(scores)
    assert len({option.label for option in CLASSICS[name]}) == tried


# ---------------------------------------------------------------- figure


def test_no_two_lines_of_the_figure_are_drawn_alike():
    summary = [{"method": f"l{i}", "kind": "learned"} for i in range(20)]
    summary += [{"method": f"c{i}", "kind": "classic"} for i in range(6)]
    looks = line_looks(summary)
    drawn = [(look["color"], look.get("marker"), look["linestyle"]) for look in looks.values()]
    assert len(drawn) == 26 == len(set(drawn))


def test_names_at_the_ends_of_lines_do_not_lie_on_each_other():
    ends = [-1.0, -1.1, -1.05, -9.9, -10.0, 0.0]
    places = spread_out(ends, 1.0, -10.0)
    ordered = sorted(places)
    assert all(high - low >= 1 - 1e-12 for low, high in zip(ordered, ordered[1:], strict=False))
    assert min(places) >= -10 and sorted(range(6), key=places.__getitem__) == sorted(range(6), key=ends.__getitem__)


# ---------------------------------------------------------------- files, report, card


@pytest.fixture
def raced(tmp_path, monkeypatch):
    """The files of a small race: the published problems are replaced by few of the same kind."""
    small = Lasso(rows=25, columns=50, supervision=1.0)
    settings = {"noiseless": small, "SNR 20 dB": dataclasses.replace(small, snr_db=20.0)}
    monkeypatch.setattr(recovery_benchmark, "SETTINGS", settings)
    monkeypatch.setattr(recovery_benchmark, "TUNING_PROBLEMS", 4)
    monkeypatch.setattr(recovery_benchmark, "CLASSICS", {name: options[:2] for name, options in CLASSICS.items()})
    monkeypatch.setattr(recovery_classics, "CLASSICS", recovery_benchmark.CLASSICS)
    monkeypatch.setattr(recovery_benchmark, "LONG", 20)
    monkeypatch.setattr(Lasso, "published_tasks", lambda self, generator: self.sample_tasks(8, generator))
    config = {"outer_step": 3, "config": to_json(PRESETS["sparse"])}
    l2o.save_rule(ALISTA(ALISTAConfig()), tmp_path / "mine", training=config, results={})
    monkeypatch.setattr(recovery_benchmark, "shipped", lambda: [])
    run_recovery([str(tmp_path / "mine")], tmp_path / "race", "l2o benchmark sparse-recovery")
    return tmp_path / "race"


def rows_of(directory: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((directory / "summary.csv").read_text().splitlines()))


def test_files_hold_every_method_twice_and_the_report_is_rebuilt_from_them(raced):
    rows = rows_of(raced)
    found = {(row["setting"], row["method"], row["steps"]) for row in rows}
    assert ("noiseless", "mine", "16") in found and ("SNR 20 dB", "mine", "16") not in found
    for setting in SETTINGS:
        assert {(setting, name, str(steps)) for name in CLASSICS for steps in (16, 20)} < found
        assert (setting, "oracle support", "0") in found
    tables = write_recovery_report(raced)
    text = (raced / "README.md").read_text()
    assert tables in text and "    l2o train sparse\n" in text and "l2o benchmark sparse-recovery" in text
    assert (raced / "curves.png").stat().st_size > 10_000
    (raced / "README.md").unlink()
    assert write_recovery_report(raced) == tables and (raced / "README.md").read_text() == text
    (raced / "README.md").unlink()
    assert report_all([raced], None)[1] == [raced / "README.md", raced / "curves.png"]
    assert (raced / "README.md").read_text() == text


def test_a_card_shows_the_race_and_how_the_rule_is_used(raced):
    text = card_text(raced.parent / "mine", (raced,))
    row = next(row for row in rows_of(raced) if row["method"] == "mine")
    assert f"| `{raced}` | noiseless | 16 | {float(row['nmse']):.1f} dB |" in text
    assert "l2o.solve(rule, " in text and "torch.optim" not in text and "l2o.load(" not in text
    assert "| weights | 32 numbers |" in text and "| command | `l2o train sparse` |" in text
    assert "in no benchmark" in card_text(raced.parent / "mine", ())


def test_a_directory_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no sparse-recovery benchmark: FileNotFoundError"):
        write_recovery_report(tmp_path)
    (tmp_path / "recovery.json").write_text(json.dumps({"settings": 3}))
    (tmp_path / "summary.csv").write_text("a\n1\n")
    (tmp_path / "curves.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match="is no sparse-recovery benchmark"):
        write_recovery_report(tmp_path)


def test_the_command_measures_and_reports_where_it_is_told(monkeypatch, tmp_path, capsys):
    seen = []
    monkeypatch.setitem(
        benchmark_commands.STUDIES,
        "sparse-recovery",
        (lambda sources, out, typed: seen.append((sources, out, typed)), lambda out: f"tables of {out}"),
    )
    commands.parse(
        ["benchmark", "sparse-recovery", "--checkpoint", "alista", "--out", str(tmp_path), "--wandb", "off"]
    )()
    assert seen == [(("alista",), tmp_path, f"l2o benchmark sparse-recovery --checkpoint alista --out {tmp_path}")]
    assert f"tables of {tmp_path}" in capsys.readouterr().out


# ---------------------------------------------------------------- the shipped rules


@needs_sparse
@pytest.mark.parametrize(("name", "target"), [("alista", -67.0), ("hyperlista", -68.0), ("lista-cpss", -45.0)])
def test_shipped_rules_recover_the_published_codes(name, target):
    family = SETTINGS["noiseless"]
    tasks = family.published_tasks(torch.Generator())
    x = l2o.solve(l2o.load_rule(name), family.problem(tasks), steps=16, history=False).x
    assert nmse(x, tasks["x_star"]) <= target


@needs_sparse
@pytest.mark.parametrize("name", SPARSE_NAMES)
def test_shipped_rules_for_noise_beat_those_without_on_noisy_data(name):
    family = SETTINGS["SNR 20 dB"]
    tasks = family.published_tasks(torch.Generator().manual_seed(0))
    problem = family.problem(tasks)
    noisy, clean = (
        nmse(l2o.solve(l2o.load_rule(name + suffix), problem, steps=16, history=False).x, tasks["x_star"])
        for suffix in ("-snr20", "")
    )
    assert noisy < clean - 1


@pytest.mark.parametrize("name", ["alista", "hyperlista"])
def test_scalar_models_carry_over_to_another_matrix_of_the_same_kind(name):
    family = Lasso(dictionary="fixed", dictionary_seed=7, supervision=1.0)
    tasks = family.sample_tasks(100, torch.Generator().manual_seed(0))
    x = l2o.solve(l2o.load_rule(name), family.problem(tasks), steps=16, history=False).x
    assert nmse(x, tasks["x_star"]) < -50


@pytest.mark.parametrize("name", [name + suffix for name in SPARSE_NAMES for suffix in ("", "-snr20")])
def test_shipped_rules_are_small(name):
    assert (Path(l2o.__file__).parent / "zoo" / name / "rule.safetensors").stat().st_size < 600_000


@needs_sparse
def test_hyperlista_converges_when_it_runs_on_beyond_its_training():
    family = SETTINGS["noiseless"]
    tasks = family.sample_tasks(20, torch.Generator().manual_seed(3))
    x = l2o.solve(l2o.load_rule("hyperlista"), family.problem(tasks), steps=1000, history=False).x
    assert nmse(x, tasks["x_star"]) < -120  # what float32 resolves
