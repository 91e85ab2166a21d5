"""The denoising study: hypergradients are right, λ is learned, and the verdict follows the numbers."""

import csv
import json
import math
import shutil

import pytest
import torch

import l2o
from meta_train import denoising_command
from meta_train.cli import main
from meta_train.denoising_learning import RULE, Lower, denoise, hypergradients, learn_strength
from meta_train.denoising_predictor import (
    ConstantStrength,
    PredictorTraining,
    StrengthPredictor,
    n_weights,
    train_predictor,
)
from meta_train.denoising_report import write_denoising_report
from meta_train.denoising_study import Pair, Settings, along_grid, noisy_set
from tasks.denoising import add_noise, crops, denoising_problem, psnr
from tasks.denoising_images import load_images

TINY = Settings(
    "embedded-train", ("embedded-test",), sigmas=(10 / 255, 40 / 255), learning_crops=2, crop=32, learning_steps=3,
    grid_half=1, solver_steps=8, pool=8, pool_crop=24, training=PredictorTraining(steps=3, batch=4),
)  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def training_pair(count: int, size: int, sigma, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops of buildings: of what is flatter, total variation is slow to come near a solution."""
    generator = seeded(seed)
    truth = crops([load_images("embedded-train")[0][200:]], count, size, generator)
    return add_noise(truth, sigma, generator), truth


def test_the_implicit_hypergradient_of_total_variation_equals_central_differences():
    noisy, truth = (images.double() for images in training_pair(2, 8, 0.1))
    found = hypergradients(noisy, truth, math.log(0.07))
    exact = found.pop("central differences")
    assert abs(exact) > 0.1
    # The differences of a solution with 9 digits over 2e-4 have 5; truncation has its bias on top.
    assert found["implicit"] == pytest.approx(exact, rel=1e-5)
    assert found["through the last 100 steps"] == pytest.approx(exact, rel=0.01)
    assert found["through the last 10 steps"] * exact > 0


def test_a_lower_level_that_does_not_converge_is_told():
    noisy, truth = (images.double() for images in training_pair(1, 8, 0.1))
    with pytest.raises(l2o.NotConvergedError, match="did not converge"):
        hypergradients(noisy, truth, math.log(0.07), max_steps=3)


@pytest.mark.parametrize("regularizer", ["tikhonov", "tv"])
def test_unrolled_condat_vu_has_the_gradient_of_what_it_computed(regularizer):
    noisy, truth = (images.double() for images in training_pair(2, 12, 0.1))

    def quality(log_strength: torch.Tensor, gradient=None) -> torch.Tensor:
        problem = denoising_problem(regularizer, noisy, log_strength)
        return psnr(l2o.solve(RULE, problem, steps=15, gradient=gradient, history=False).x, truth).mean()

    at = torch.tensor(math.log(0.07), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(quality(at, "unrolled"), at)
    differences = (quality(at.detach() + 1e-6) - quality(at.detach() - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, differences, rtol=1e-7, atol=0)


@pytest.mark.parametrize(("regularizer", "start"), [("tikhonov", 0.5), ("tv", 0.02)])
def test_learning_finds_the_best_strength_of_the_training_images(regularizer, start):
    noisy, truth = training_pair(4, 40, 0.1)
    points = learn_strength(regularizer, noisy, truth, math.log(start), steps=40)

    @torch.no_grad()
    def quality(log_strength: float) -> float:
        at = torch.tensor(log_strength)
        return psnr(denoise(regularizer, noisy, at, None, Lower(60, 1)).x, truth).mean().item()

    best = max(quality(points[-1].log_strength + 0.04 * k) for k in range(-25, 26))
    assert quality(points[-1].log_strength) > best - 0.01 > quality(math.log(start))
    assert points[0].log_strength == pytest.approx(math.log(start)) and len(points) == 41
    assert points[-1].psnr == pytest.approx(quality(points[-1].log_strength), abs=0.05)


def test_a_network_learns_to_see_the_noise_level():
    sigma = torch.tensor([0.02, 0.15]).repeat(8)
    noisy, truth = training_pair(16, 24, sigma)
    options = PredictorTraining(steps=80, batch=8)
    finals = {}
    for name, predictor in (("constant", ConstantStrength(-3.0)), ("network", StrengthPredictor(-3.0, seeded(1)))):
        assert torch.equal(predictor(noisy), torch.full((16,), -3.0))
        train_predictor(predictor, noisy, truth, options, seeded(2))
        with torch.no_grad():
            finals[name] = psnr(denoise("tv", noisy, predictor(noisy), None, Lower(60, 1)).x, truth).mean().item()
    strengths = predictor(noisy).detach().exp()
    assert strengths[1::2].min() > strengths[::2].max()
    assert strengths[1::2].median() > 5 * strengths[::2].median()
    assert finals["network"] > finals["constant"] + 0.5
    assert n_weights(predictor) == 72 + 576 + 16 * 16 + 16 + 16 + 1


def test_a_predictors_gradient_equals_central_differences():
    noisy, truth = (images.double() for images in training_pair(2, 12, 0.1))
    predictor = StrengthPredictor(-3.0, seeded(1)).double()
    with torch.no_grad():
        predictor.out_weight += 0.1
    weight = predictor.first
    (gradient,) = torch.autograd.grad(predictor(noisy).sum(), weight)
    values = []
    for shift in (-1e-6, 1e-6):
        with torch.no_grad():
            weight[3, 0, 1, 2] += shift
            values.append(predictor(noisy).sum().item())
            weight[3, 0, 1, 2] -= shift
    assert gradient[3, 0, 1, 2].item() == pytest.approx((values[1] - values[0]) / 2e-6, rel=1e-6)


def test_a_grid_with_warm_starts_has_the_values_of_each_strength_alone():
    (noisy,), (truth,) = training_pair(1, 48, 0.1)
    pair, strengths = Pair(noisy, truth, 0.1), [math.log(0.05) + 0.1 * k for k in range(6)]
    alone = torch.cat([along_grid("tv", pair, [at], 400) for at in strengths])
    # float32 and a finite number of steps, in dB
    torch.testing.assert_close(along_grid("tv", pair, strengths, 80), alone, rtol=0, atol=2e-3)


def test_noise_levels_take_turns():
    images = [torch.full((64, 64), 0.5)] * 4
    pairs = noisy_set(images, (0.01, 0.2), 0)
    assert [pair.sigma for pair in pairs] == [0.01, 0.2, 0.01, 0.2]
    assert all((pair.noisy - pair.truth).std().item() == pytest.approx(pair.sigma, rel=0.06) for pair in pairs)


def test_a_lower_level_needs_steps():
    with pytest.raises(ValueError, match="steps and last must be at least 1, got 5 and 0"):
        Lower(steps=5, last=0)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The command's directory, with little of everything."""
    directory = tmp_path_factory.mktemp("denoising")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoising_command, "SETTINGS", {"embedded": TINY})
        main(["denoising", "--out", str(directory), "--images", "embedded"])
    return directory


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_what_its_report_reads(study):
    facts, summary = json.loads((study / "study.json").read_text()), rows(study / "summary.csv")
    assert [(row["regularizer"], row["set"]) for row in summary] == [
        ("tikhonov", "embedded-test"),
        ("tv", "embedded-test"),
    ]
    for row in summary:
        (pairs, learned) = noisy_set(load_images("embedded-test"), (TINY.sigma,), 2), math.log(float(row["learned"]))
        found = [along_grid(row["regularizer"], pair, [learned], 200)[0].item() for pair in pairs]  # pyright: ignore
        # 8 steps, the study's, are not yet the solution of total variation
        assert float(row["psnr_learned"]) == pytest.approx(sum(found) / 2, abs=0.3)
        grid = [float(each["psnr"]) for each in rows(study / "grid.csv") if each["regularizer"] == row["regularizer"]]
        assert len(grid) == 3 and float(row["psnr_best"]) == pytest.approx(max(grid), abs=1e-4)
    assert facts["command"] == f"l2o denoising --out {study} --images embedded --threads 1"
    predictor = rows(study / "predictor.csv")
    assert len(predictor) == 2 * 2 * 4 and {row["method"] for row in predictor} >= {"network", "one λ for all"}
    assert (study / "denoising.png").stat().st_size > 10_000 and (study / "images.png").stat().st_size > 10_000
    text = (study / "README.md").read_text()
    assert "| Tikhonov | embedded-test | 2 |" in text and facts["command"] in text


@pytest.mark.parametrize(
    ("short", "inside", "words"),
    [
        ("0.0199", "True", "4: within 0.02 dB.\n"),
        ("0.0201", "True", "4: NOT within 0.02 dB.\n"),
        ("0.001", "False", "4: within 0.02 dB. That best λ lies at the END of the grid.\n"),
    ],
)
def test_the_verdict_follows_the_numbers(study, tmp_path, short, inside, words):
    directory = shutil.copytree(study, tmp_path / "copy")
    found = rows(directory / "summary.csv")
    for row in found:
        row |= {"short_of_best": short, "best_is_inside": inside, "best": "4"}
    _write(directory / "summary.csv", found)
    write_denoising_report(directory)
    assert words in (directory / "README.md").read_text()


def test_a_network_that_loses_is_said_to_lose(study, tmp_path):
    directory = shutil.copytree(study, tmp_path / "copy")
    found = rows(directory / "predictor.csv")
    values = {"network": "20", "one λ for all": "21.5", "λ ∝ σ, σ known": "23", "best λ of each image": "24"}
    for row in found:
        row["psnr"] = values[row["method"]]
    _write(directory / "predictor.csv", found)
    main(["denoising", "--out", str(directory), "--rebuild"])
    text = (directory / "README.md").read_text()
    assert "LOSES 1.50 dB against one λ" in text and "of 2.50 dB" in text and "3.00 dB BELOW λ ∝ σ" in text


def test_a_directory_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a denoising study: FileNotFoundError"):
        write_denoising_report(tmp_path)


def _write(path, found: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
