"""A protocol from end to end, its numbers recomputed with torch.optim, and the tuning of the classics."""

import csv
import dataclasses
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from l2o.checkpoint import CheckpointError, save_rule
from l2o.rules import SGD, SGDConfig
from meta_train.baselines import CLASSICS, GRID, tune
from meta_train.benchmark import learned_rules, run_benchmark
from meta_train.protocols import PROTOCOLS, Protocol
from meta_train.seeds import derive_seed
from tasks import SPLITS, TASKS, Quadratic
from tasks.task import Data, Params, TaskFamily

TINY = Protocol(
    name="tiny",
    question="Is it right?",
    settings={"start 0": Quadratic(dim=3), "start N(0, 1)": Quadratic(dim=3, start="normal")},
    learned=(),
    problems=24,
    tuning_problems=6,
    sum_steps=12,
    steps=15,
)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A "learned" rule that is gradient descent with a step size far too small."""
    return save_rule(SGD(SGDConfig(lr=1e-6)), tmp_path_factory.mktemp("checkpoint") / "timid")


@pytest.fixture(scope="module")
def results(checkpoint, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("results") / "tiny"
    run_benchmark(TINY, [str(checkpoint)], out, "l2o benchmark tiny")
    return out


def test_the_summary_has_a_row_per_setting_and_method_and_the_promised_columns(results):
    rows = read(results / "summary.csv")
    assert {
        "setting", "method", "seeds", "sum_loss", "sum_loss_sd", "final_loss", "final_loss_sd", "lr", "cpu_s",
    } <= set(rows[0])  # fmt: skip
    assert Counter((row["setting"], row["method"]) for row in rows) == dict.fromkeys(
        [(setting, method) for setting in TINY.settings for method in ("timid", *CLASSICS)], 1
    )
    for row in rows:
        learned = row["method"] == "timid"
        assert row["kind"] == ("learned" if learned else "classic")
        assert row["seeds"] == "24" and row["diverged"] == "0" and float(row["cpu_s"]) > 0
        assert (row["lr"] == "") == learned
        assert int(row["lrs_tried"]) >= (0 if learned else len(GRID))


OPTIMIZERS = {
    "SGD": lambda params, lr: torch.optim.SGD(params, lr),
    "momentum": lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9),
    "NAG": lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9, nesterov=True),
    "RMSprop": lambda params, lr: torch.optim.RMSprop(params, lr),
    "Adam": lambda params, lr: torch.optim.Adam(params, lr),
}


def losses_with_torch_optim(method: str, lr: float, start: str) -> Tensor:
    """Return (steps, problems): W, y and θ_0 drawn as the protocol's seed gives them, one problem after the other."""
    generator = torch.Generator().manual_seed(TINY.seed)
    W, y = torch.randn(24, 3, 3, generator=generator), torch.randn(24, 3, generator=generator)
    theta = torch.randn(24, 3, generator=generator) * (start == "normal")
    curves = []
    for i in range(24):
        variable = theta[i].clone().requires_grad_()
        optimizer = OPTIMIZERS[method]([variable], lr)
        curve = []
        for _ in range(TINY.steps):
            loss = (W[i] @ variable - y[i]).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    return torch.tensor(curves, dtype=torch.float64).T


@pytest.mark.parametrize("method", CLASSICS)
@pytest.mark.parametrize("setting", TINY.settings)
def test_every_classic_gives_the_numbers_of_torch_optim_on_the_same_problems(method, setting, results):
    (row,) = [row for row in read(results / "summary.csv") if (row["setting"], row["method"]) == (setting, method)]
    lr = 10 ** (round(16 * math.log10(float(row["lr"]))) / 16)  # refined to sixteen a decade; the file rounds
    assert float(row["lr"]) == pytest.approx(lr, rel=1e-3)  # four digits
    losses = losses_with_torch_optim(method, lr, TINY.settings[setting].start)
    sums, final = losses[:12].sum(0), losses[-10:].mean(0)
    expected = {
        "sum_loss": sums.mean(), "sum_loss_sd": sums.std(), "sum_loss_median": sums.median(),
        "final_loss": final.mean(), "final_loss_sd": final.std(),
    }  # fmt: skip
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(value.item(), rel=2e-4), name  # five digits, float32 trajectories
    curve = [row for row in read(results / "curves.csv") if (row["setting"], row["method"]) == (setting, method)]
    assert [int(row["step"]) for row in curve] == list(range(15))
    for row, values in zip(curve, losses, strict=True):
        found = [float(row[name]) for name in ("mean", "sd", "q25", "median", "q75")]
        quartiles = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
        assert found == pytest.approx([values.mean().item(), values.std().item(), *quartiles], rel=2e-4)  # as above


def test_wins_are_the_problems_on_which_a_method_beats_the_best_classic(results):
    rows = {row["method"]: row for row in read(results / "summary.csv") if row["setting"] == "start 0"}
    best = min(CLASSICS, key=lambda method: float(rows[method]["sum_loss"]))
    assert {row["best_classic"] for row in rows.values()} == {best}
    sums = {}
    for method in CLASSICS:
        lr = 10 ** (round(16 * math.log10(float(rows[method]["lr"]))) / 16)
        sums[method] = losses_with_torch_optim(method, lr, "zero")[:12].sum(0)
    for method in CLASSICS:
        wins = (sums[method] < sums[best]).double().mean().item()
        # One problem of 24 may change sides by rounding; the best never beats itself.
        assert float(rows[method]["wins"]) == pytest.approx(wins, abs=0 if method == best else 1 / 23)


def test_the_protocol_file_tells_what_was_run_where(results):
    facts = json.loads((results / "protocol.json").read_text())
    assert facts["command"] == "l2o benchmark tiny" and facts["directory"] == str(results)
    assert facts["settings"]["start 0"] == str(TINY.settings["start 0"])
    assert (facts["problems"], facts["tuning_problems"], facts["sum_steps"], facts["seed"]) == (24, 6, 12, 2016)
    assert facts["environment"]["packages"]["torch"] == torch.__version__


def test_a_second_run_writes_the_same_curves(results, checkpoint, tmp_path):
    run_benchmark(TINY, [str(checkpoint)], tmp_path, "l2o benchmark tiny")
    assert (tmp_path / "curves.csv").read_bytes() == (results / "curves.csv").read_bytes()


def test_a_results_directory_that_cannot_be_written_is_found_before_anything_is_computed(checkpoint, tmp_path):
    (tmp_path / "file").touch()
    asked = Counter()
    protocol = dataclasses.replace(TINY, settings={"only": Recording(asked)})
    for out in (tmp_path / "file", tmp_path / "file/below", Path("/proc/nothing")):
        with pytest.raises(OSError, match=str(out).split("/below")[0]):
            run_benchmark(protocol, [str(checkpoint)], out, "")
    assert not asked


def test_a_checkpoint_that_cannot_be_loaded_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at nowhere"):
        run_benchmark(TINY, ["nowhere"], tmp_path, "")


def test_checkpoints_with_the_same_name_take_part_under_their_paths(tmp_path, monkeypatch):
    sources = [str(save_rule(SGD(SGDConfig(lr)), tmp_path / name / "best")) for name, lr in (("a", 0.1), ("b", 0.2))]
    sources.append(str(save_rule(SGD(SGDConfig(0.3)), tmp_path / "Adam")))  # the name of a classic
    rules = learned_rules(TINY, sources)
    assert list(rules) == sources
    assert [rule.config.lr for rule in rules.values()] == [0.1, 0.2, 0.3]
    monkeypatch.chdir(tmp_path / "a/best")
    assert list(learned_rules(TINY, ["."])) == ["best"]


def test_published_weights_take_part_where_they_are_at_hand(monkeypatch, tmp_path):
    protocol = dataclasses.replace(TINY, published=("dm",))
    monkeypatch.delenv("L2O_DATA", raising=False)
    assert learned_rules(protocol, []) == {}
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    assert learned_rules(protocol, []) == {}


# --- tuning ---


@dataclass(frozen=True)
class Parabola(TaskFamily):
    """½ c θ² from θ = 1: gradient descent ends in one step with the learning rate 1/c."""

    curvature: float

    def init_params(self, tasks: Data, n_tasks: int, generator: torch.Generator) -> Params:
        return {"theta": torch.ones(n_tasks, 1)}

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        return self.curvature * params["theta"].square().sum() / 2


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 1.0, 2.75])
def test_tuning_finds_the_analytic_best_learning_rate_of_a_parabola(exponent):
    lr, tried = tune(CLASSICS["SGD"], Parabola(10**exponent), 1, 20, seed=0)
    assert lr == pytest.approx(10**-exponent)
    assert tried == len(GRID) + 4 + (exponent == -0.5)  # refined twice on both sides; 10^0.5 is the end of the grid


def test_tuning_refines_around_the_best_to_sixteen_a_decade():
    lr, _ = tune(CLASSICS["SGD"], Parabola(10**0.3125), 1, 20, seed=0)
    assert lr == pytest.approx(10**-0.3125)


@pytest.mark.parametrize("exponent", [-2.0, 4.5])
def test_tuning_extends_the_grid_where_the_best_lies_outside(exponent):
    best = 10**-exponent
    assert not GRID[0] <= best <= GRID[-1]
    lr, tried = tune(CLASSICS["SGD"], Parabola(10**exponent), 1, 20, seed=0)
    assert lr == pytest.approx(best)
    steps_outside = round(4 * abs(math.log10(best) - math.log10(GRID[-1] if best > 1 else GRID[0])))
    assert tried == len(GRID) + steps_outside + 1 + 4  # one more shows that the end is reached; four refine


def test_the_grid_has_more_than_ten_learning_rates_evenly_spaced():
    assert len(GRID) == 17 and GRID[0] == pytest.approx(10**-3.5) and GRID[-1] == pytest.approx(10**0.5)
    ratios = [b / a for a, b in zip(GRID, GRID[1:], strict=False)]
    assert ratios == pytest.approx([10**0.25] * 16)


class Recording(TaskFamily):
    """A family that counts the splits it was asked for, and keeps the seeds of its generators."""

    def __init__(self, asked: Counter):
        self.asked = asked
        self.seeds: dict[str, set[int]] = {}

    def init_params(self, tasks, n_tasks, generator) -> Params:
        return {"theta": torch.randn(n_tasks, 2, generator=generator)}

    def sample_batch(self, tasks, n_tasks, split, generator) -> Data:
        self.asked[split] += 1
        self.seeds.setdefault(split, set()).add(generator.initial_seed())
        return {}

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        return params["theta"].square().sum()


def test_tuning_uses_other_problems_and_another_split_than_the_race(checkpoint, tmp_path):
    family = Recording(Counter())
    run_benchmark(dataclasses.replace(TINY, settings={"only": family}), [str(checkpoint)], tmp_path, "")
    assert set(family.asked) == {"outer_valid", "test"}
    assert family.seeds == {"outer_valid": {derive_seed(2016, "tuning")}, "test": {2016}}
    assert family.asked["test"] == (1 + len(CLASSICS)) * TINY.steps


# --- what diverges ---


def test_a_method_that_diverges_shows_as_diverged(tmp_path):
    wild = save_rule(SGD(SGDConfig(lr=1e9)), tmp_path / "wild")
    run_benchmark(TINY, [str(wild)], tmp_path / "out", "l2o benchmark tiny")
    rows = {row["method"]: row for row in read(tmp_path / "out/summary.csv") if row["setting"] == "start 0"}
    assert rows["wild"]["diverged"] == "24" and rows["wild"]["wins"] == "0"
    assert not math.isfinite(float(rows["wild"]["sum_loss"]))
    assert all(rows[method]["diverged"] == "0" for method in CLASSICS)


# --- the frozen protocols ---


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_frozen_protocol_is_large_enough_and_its_families_are_known(name):
    protocol = PROTOCOLS[name]
    assert protocol.name == name and protocol.question.endswith("?")
    assert protocol.problems >= (1000 if name == "quadratic" else 10)
    assert protocol.sum_steps == (1000 if name == "lasso" else 100) <= protocol.steps
    assert all(type(family) in TASKS.values() for family in protocol.settings.values())
    assert "test" in SPLITS and protocol.tuning_problems >= 1


def test_tuning_validation_and_test_problems_are_different_numbers():
    # Not only different seeds: torch's CPU generator drops the high 32 bits of a seed.
    streams = [
        torch.randn(8, generator=torch.Generator().manual_seed(seed))
        for seed in (2016, derive_seed(2016, "tuning"), derive_seed(2016, "validation"), derive_seed(2017, "tuning"))
    ]
    assert not any(torch.equal(a, b) for i, a in enumerate(streams) for b in streams[:i])
