"""The neural-art benchmark: what a race measures, how learning rates are chosen, intervals, files, contact sheet."""

import csv
import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy.stats import ttest_1samp

from l2o import save_rule
from l2o.rules import SGD, CoordinatewiseLSTM, LSTMConfig, SGDConfig
from meta_train import art_settings
from meta_train.art_benchmark import Entry, compare, paint, run_art, summarise
from meta_train.art_race import Run, as_bytes, lbfgs_racer, racer
from meta_train.art_report import write_art_report
from meta_train.art_settings import SETTINGS, Setting
from meta_train.art_tuning import scores, tune
from meta_train.unroll import evaluate
from tasks import NeuralArt, Quadratic
from tasks.features import build_network

DATA = os.environ.get("L2O_DATA", "")
needs_art = pytest.mark.skipif(not Path(DATA, "art").is_dir(), reason="needs L2O_DATA/art")


class Pictures(Quadratic):
    """Quadratics that have a picture, so that they can be raced in a moment."""

    def picture(self, params, batch):
        return params["image"].reshape(-1, 1, 2, 5)

    def init_params(self, tasks, n_tasks, generator):
        return {"image": super().init_params(tasks, n_tasks, generator)["theta"]}

    def loss(self, params, task, batch):
        return super().loss({"theta": params["image"]}, task, batch)

    def sample_tasks(self, n_tasks, generator):
        return super().sample_tasks(n_tasks, generator) | {"style": torch.zeros(n_tasks)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A file of random weights of the network."""
    generator = torch.Generator().manual_seed(7)
    with torch.device("meta"):
        expected = build_network("squeezenet1_1").state_dict()
    state = {
        name: torch.randn(t.shape, generator=generator) * (2 / max(1, t[0].numel())) ** 0.5
        for name, t in expected.items()
    }
    path = tmp_path_factory.mktemp("nets") / "random.pth"
    torch.save(state, path)
    return str(path)


@pytest.fixture
def small(weights, monkeypatch):
    """Two small settings in the place of the real ones."""
    family = NeuralArt(20, ("flower", "china"), weights=weights, content_layer=1, style_layers=(1, 3))
    settings = {
        "one": Setting(family, 3, 6, 2, ("SGD", "Adam", "L-BFGS")),
        "other": Setting(dataclasses.replace(family, size=24), 2, 8, 2, ("Adam",)),
    }
    monkeypatch.setattr(art_settings, "SETTINGS", settings)
    monkeypatch.setattr(art_settings, "COUNTS", (2, 4, 5, 6))
    monkeypatch.setattr(art_settings, "SHOWN_STEP", 6)
    monkeypatch.setattr(art_settings, "LBFGS_OPTIONS", ((1.0, 5),))
    return settings


# ---------------------------------------------------------------- measures


def test_a_race_of_a_rule_is_the_loop_of_the_other_benchmarks(weights):
    family = NeuralArt(20, ("flower",), weights=weights, content_layer=1, style_layers=(1, 3))
    rule = SGD(SGDConfig(0.01))
    tasks = family.sample_tasks(2, torch.Generator().manual_seed(3))
    run = racer(rule)(family, tasks, 5, "test", 5)
    expected = evaluate(rule, family, 2, 6, "test", torch.Generator().manual_seed(3))
    assert torch.equal(run.losses.float(), expected) and run.losses.shape == (6, 2)
    shown = racer(rule)(family, tasks, 5, "test", 0).pictures
    assert torch.equal(shown, as_bytes(family.sample_batch(tasks, 2, "test", torch.Generator())["start"]))
    assert not torch.equal(shown, run.pictures)


def test_lbfgs_is_counted_by_evaluation_and_finds_the_minimum_of_a_quadratic(float64):
    family = Pictures()
    tasks = family.sample_tasks(3, torch.Generator().manual_seed(0))
    run = lbfgs_racer(1.0, 20)(family, tasks, 200, "test", 200)  # pyright: ignore (looks like one)
    start = family.init_params(tasks, 3, torch.Generator().manual_seed(0))
    for task in range(3):
        alone = {name: tensor[task] for name, tensor in tasks.items()}
        first = family.loss({"image": start["image"][task]}, alone, {})
        assert run.losses[0, task].item() == pytest.approx(first.item(), rel=1e-12)
    assert run.losses.shape == (201, 3) and (run.losses.diff(dim=0) <= 0).all()
    assert (run.losses[-1] < 1e-6 * run.losses[0]).all()


def test_scores_are_means_of_logarithms_and_infinite_for_a_diverged_run():
    losses = torch.tensor([[9.0, 9.0], [math.e, 1.0], [math.e**3, math.e]])
    assert scores(losses) == pytest.approx({"mean": (0.5 + 2) / 2, "end": 2.0})
    losses[1, 0] = torch.nan
    assert scores(losses) == pytest.approx({"mean": math.inf, "end": 2.0})


@pytest.mark.parametrize("best", [1e-3, 0.03, 0.9])
def test_tuning_brackets_the_optimum_wherever_it_lies(best):
    def run(lr):  # log f = (log lr/best)² over the steps, but at the last for four times the lr
        logs = [math.log10(lr / best) ** 2] * 99 + [math.log10(lr / (4 * best)) ** 2]
        return torch.tensor([0.0, *logs]).exp()[:, None]

    chosen, tried = tune(run, 0.03)
    for name, optimum in (("mean", best), ("end", 4 * best)):
        assert abs(math.log10(chosen[name] / optimum)) <= 1 / 16 + 1e-3  # half of half a step; "mean" has 1 % of "end"
        assert min(tried) < chosen[name] < max(tried)


def test_tuning_steps_back_from_learning_rates_that_diverge():
    chosen, tried = tune(lambda lr: torch.tensor([[1.0], [torch.inf if lr > 0.5 else 1 / lr]]), 1.0)
    assert 0.4 < chosen["mean"] <= 0.5 and max(tried) > 0.5


def test_paired_intervals_are_students():
    generator = torch.Generator().manual_seed(0)
    mine, other = (torch.rand(4, 9, generator=generator).double() + 0.5 for _ in range(2))
    entries = [Entry(name, "learned", "", 0, Run(losses, torch.ones(9), torch.zeros(9))) for name, losses in
               (("mine", mine), ("other", other))]  # fmt: skip
    rows = compare("one", *entries)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row, differences in zip(rows, (mine.log() - other.log()).tolist(), strict=True):
        expected = ttest_1samp(differences, 0).confidence_interval(0.95)
        assert float(row["low"]) == pytest.approx(expected.low, rel=1e-3)  # four digits are written
        assert float(row["high"]) == pytest.approx(expected.high, rel=1e-3)
        assert float(row["lower_on"]) == pytest.approx(sum(d < 0 for d in differences) / 9, abs=1e-3)


def test_a_summary_divides_by_the_factor_of_the_weights_and_names_the_best_classic():
    setting = SETTINGS["new styles, 128×128"]
    losses = {"mine": 2.0, "good": 3.0, "bad": 5.0}
    entries = [
        Entry(name, "learned" if name == "mine" else "classic", "", 1,
              Run(torch.full((129, 2), 4 * value, dtype=torch.float64), torch.ones(2), torch.zeros(2)))
        for name, value in losses.items()
    ]  # fmt: skip
    rows = summarise("new", setting, entries)
    for row in rows:
        assert float(row["log_32"]) == pytest.approx(math.log(losses[row["method"]]), rel=1e-4)
        assert float(row["sum_loss"]) == 128 * losses[row["method"]] and row["best_classic"] == "good"
    assert [row["wins"] for row in rows] == ["1", "0", "0"]


# ---------------------------------------------------------------- settings


def test_settings_hold_what_they_promise_and_pairs_do_not_depend_on_their_number():
    for setting in SETTINGS.values():
        base, factor = NeuralArt(), (setting.family.size / 64) ** 2
        assert setting.family.style_weight == factor * base.style_weight == 10 * setting.family.content_weight
        assert setting.family.photographs == "art" and len(setting.tasks("test")["style"]) == setting.pairs
        more = dataclasses.replace(setting, pairs=setting.pairs + 3).tasks("test")
        assert all(torch.equal(more[name][: setting.pairs], t) for name, t in setting.tasks("test").items())


def test_the_gradient_of_a_pixel_does_not_shrink_with_the_resolution(weights):
    sizes = []
    for size in (32, 64):
        family = dataclasses.replace(art_settings.family(size, ("flower",)), weights=weights, photographs="embedded")
        tasks = family.sample_tasks(2, torch.Generator().manual_seed(1))
        batch = family.sample_batch(tasks, 2, "train", torch.Generator())
        image = torch.zeros(2, 3, size, size, requires_grad=True)
        (grad,) = torch.autograd.grad(family.loss({"image": image}, tasks, batch).sum(), image)
        sizes.append(grad.square().mean().sqrt().item())
    assert 0.5 < sizes[1] / sizes[0] < 2  # without the factor: about a quarter


# ---------------------------------------------------------------- files


@pytest.fixture
def checkpoint(tmp_path):
    rule = CoordinatewiseLSTM(LSTMConfig(hidden_size=3), torch.Generator().manual_seed(0))
    return str(save_rule(rule, tmp_path / "mine"))


def test_what_was_painted_is_not_painted_again(small, tmp_path):
    setting, calls = small["one"], []

    def race(*arguments):
        calls.append(len(arguments[1]["style"]))
        return racer(SGD(SGDConfig(0.01)))(*arguments)

    first = paint(race, "SGD", setting, "test", tmp_path)
    again = paint(race, "SGD", setting, "test", tmp_path)
    assert calls == [3] and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    paint(race, "SGD", setting, "outer_valid", tmp_path)
    paint(race, "another", setting, "test", tmp_path)
    assert calls == [3, 2, 3]


def test_the_command_writes_tables_figure_contact_sheet_and_readme(small, checkpoint, tmp_path):
    out = tmp_path / "out"
    run_art([checkpoint], out, "l2o benchmark neural-art")
    table = write_art_report(out)
    with (out / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    methods = ["mine", "SGD", "SGD (end)", "Adam", "Adam (end)", "L-BFGS", "L-BFGS (end)"]
    assert [row["method"] for row in rows if row["setting"] == "one"] == methods
    assert all(row["method"] in table for row in rows)
    readme = (out / "README.md").read_text()
    assert "2 of 3 runs diverged" not in readme and "0 of 3 runs diverged" in readme
    assert "every first-order classic" in readme or "ABOVE one of them" in readme
    assert json.loads((out / "study.json").read_text())["settings"]["other"]["pairs"] == 2
    with Image.open(out / "curves.png") as curves, Image.open(out / "contact-sheet.png") as sheet:
        assert curves.width > 400 and sheet.width == 132 * 6
    assert (out / "contact-sheet.png").stat().st_size <= 400_000
    # A second call only writes the files again.
    before = {path.name: path.read_bytes() for path in out.glob("*.csv")}
    run_art([checkpoint], out, "l2o benchmark neural-art")
    assert before == {path.name: path.read_bytes() for path in out.glob("*.csv")}


def test_another_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="was not written by l2o benchmark neural-art"):
        write_art_report(tmp_path)


@needs_art
def test_the_real_settings_draw_test_photographs():
    setting = SETTINGS["training style, 64×64"]
    tasks = setting.tasks("test")
    start = setting.family.sample_batch(tasks, setting.pairs, "test", torch.Generator())["start"]
    assert start.shape == (setting.pairs, 3, 64, 64) and 0 <= start.min() and start.max() <= 1
    assert setting.pairs >= 20
