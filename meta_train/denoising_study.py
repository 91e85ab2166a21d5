"""The denoising study: λ of Tikhonov and of total variation, learned on training crops, against grids on the test sets.

One noise level: is the λ that is learned as good as the best λ for the test set itself? Many noise levels: what does a
network gain that predicts λ from the noisy image?
"""

import csv
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from l2o import NotConvergedError
from meta_train.denoising_learning import Lower, hypergradients, learn_strength, start_point
from meta_train.denoising_predictor import (
    ConstantStrength,
    PredictorTraining,
    StrengthPredictor,
    n_weights,
    train_predictor,
)
from meta_train.run_directory import describe_environment
from tasks.denoising import Regularizer, add_noise, crops, psnr, tikhonov
from tasks.denoising_images import ImageSet, load_images

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is measured, and with how much work."""

    train: ImageSet = "train400"
    tests: tuple[ImageSet, ...] = ("set12", "bsd68")
    sigma: float = 25 / 255
    """Noise of the first part, units of the grey scale from 0 to 1."""
    sigmas: tuple[float, ...] = (5 / 255, 15 / 255, 25 / 255, 35 / 255, 50 / 255)
    """Noise of the second part on the first test set; images of the others take turns at them."""
    learning_crops: int = 48
    """Crops on which λ is learned."""
    crop: int = 128
    """Their side, pixels."""
    starts: tuple[float, float] = (0.2, 0.02)
    """λ of Tikhonov and of total variation before learning: far from good."""
    learning_steps: int = 24
    lower: Lower = Lower(steps=15, last=8)
    grid_ratio: float = 1.1
    """From a λ to the next in the grid of a test set."""
    grid_half: int = 6
    """Grid points on either side of the first one, which is the λ learned."""
    solver_steps: int = 80
    """Of the dual method in tests, at most; along a grid a quarter of them, after the first."""
    pool: int = 128
    """Crops on which predictors are trained."""
    pool_crop: int = 96
    """Their side, pixels."""
    training: PredictorTraining = PredictorTraining()
    seed: int = 0


EMBEDDED = Settings("embedded-train", ("embedded-test",), learning_crops=12, grid_half=4, pool=48)
"""The study on scikit-learn's two photographs: it needs no files."""

Choice = Literal["published", "embedded"]
SETTINGS: dict[Choice, Settings] = {"published": Settings(), "embedded": EMBEDDED}


class Pair(NamedTuple):
    """A test image."""

    noisy: Tensor
    truth: Tensor
    sigma: float


def run_denoising(out: Path, command: str, settings: Settings) -> None:
    """Measure everything, and write CSV files, study.json and the pictures of one image.

    Args:
        command: what was typed, for the README.

    Raises:
        DataError: if images are missing or damaged.
    """
    images = {name: load_images(name) for name in (settings.train, *settings.tests)}  # what is missing is said first
    environment = describe_environment()  # before the first file makes the checkout differ from its commit
    begun, tables, facts = time.process_time(), {}, {"environment": environment}
    with tqdm(total=5, unit="part", disable=None) as bar:
        for part in (_check_gradients, _learn_one_level, _learn_many_levels, _check_precision, _save_pictures):
            bar.set_description_str(part.__name__.strip("_").replace("_", " "))
            part(settings, images, tables, facts, out)
            bar.update()
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        _write_csv(out / f"{name}.csv", rows)
    facts |= {"cpu_s": time.process_time() - begun, "settings": asdict(settings), "command": command}
    facts["directory"] = str(out)
    (out / "study.json").write_text(json.dumps(facts, indent=2) + "\n")


Images = dict[str, tuple[Tensor, ...]]
Tables = dict[str, list[Row]]


def _check_gradients(settings: Settings, images: Images, tables: Tables, facts: Row, out: Path) -> None:
    """Compare hypergradients of total variation on two small crops in float64."""
    generator = torch.Generator().manual_seed(settings.seed)
    truth = crops(images[settings.train], 2, 12, generator).double()
    noisy = add_noise(truth, settings.sigma, generator)
    try:
        found = hypergradients(noisy, truth, math.log(0.75 * settings.sigma))
    except NotConvergedError as error:
        found = {f"not measured: {error}": math.nan}
    tables["hypergradients"] = [{"way": way, "gradient": f"{value:.10g}"} for way, value in found.items()]


def _learn_one_level(settings: Settings, images: Images, tables: Tables, facts: Row, out: Path) -> None:
    """Learn λ at one noise level, and search a grid on each test set."""
    generator = torch.Generator().manual_seed(settings.seed + 1)
    truth = crops(images[settings.train], settings.learning_crops, settings.crop, generator)
    noisy = add_noise(truth, settings.sigma, generator)
    tables |= {name: [] for name in ("learning", "grid", "summary")}
    for regularizer, first in zip(("tikhonov", "tv"), settings.starts, strict=True):
        begun = time.process_time()
        steps = settings.learning_steps
        points = learn_strength(regularizer, noisy, truth, math.log(first), steps, lower=settings.lower)
        spent = time.process_time() - begun
        learned = points[-1].log_strength
        tables["learning"] += [
            {"regularizer": regularizer, "step": step, "strength": f"{math.exp(at):.6g}", "psnr": f"{quality:.5f}"}
            for step, (at, quality) in enumerate(points)
        ]
        for name in settings.tests:
            pairs = noisy_set(images[name], (settings.sigma,), settings.seed + 2)
            tables["summary"].append(_search(settings, regularizer, name, pairs, learned, tables["grid"]))
            tables["summary"][-1] |= {"learning_cpu_s": f"{spent:.1f}"}
        facts[f"learned_{regularizer}"] = math.exp(learned)


def _search(
    settings: Settings, regularizer: Regularizer, name: str, pairs: list[Pair], learned: float, grid: list[Row]
) -> Row:
    """Return a row of the summary: the λ learned against the best of a grid around it, on one test set."""
    half, ratio = settings.grid_half, math.log(settings.grid_ratio)
    strengths = [learned + ratio * k for k in range(-half, half + 1)]
    found = torch.stack([along_grid(regularizer, pair, strengths, settings.solver_steps) for pair in pairs])
    means = found.mean(0).tolist()
    grid += [
        {"regularizer": regularizer, "set": name, "strength": f"{math.exp(at):.6g}", "psnr": f"{mean:.5f}"}
        for at, mean in zip(strengths, means, strict=True)
    ]
    best = max(range(len(means)), key=means.__getitem__)
    per_image = found.amax(1).mean().item()
    return {
        "regularizer": regularizer, "set": name, "images": len(pairs), "sigma": f"{settings.sigma:.6g}",
        "psnr_noisy": f"{_mean([psnr(pair.noisy, pair.truth).item() for pair in pairs]):.4f}",
        "learned": f"{math.exp(learned):.6g}", "psnr_learned": f"{means[half]:.4f}",
        "best": f"{math.exp(strengths[best]):.6g}", "psnr_best": f"{means[best]:.4f}",
        "short_of_best": f"{means[best] - means[half]:.5f}", "best_is_inside": 0 < best < len(means) - 1,
        "psnr_best_per_image": f"{per_image:.4f}",
    }  # fmt: skip


@torch.no_grad()
def along_grid(regularizer: Regularizer, pair: Pair, strengths: list[float], steps: int) -> Tensor:
    """Return the PSNR of an image at each log λ, in dB; total variation starts from the λ before."""
    found, dual, noisy = [], None, pair.noisy[None]
    for at in strengths:
        log_strength = pair.noisy.new_tensor(at)
        if regularizer == "tikhonov":
            x = tikhonov(noisy, log_strength)
        else:
            x, dual = start_point(noisy, log_strength, dual, steps if dual is None else max(1, steps // 4))
        found.append(psnr(x, pair.truth)[0])
    return torch.stack(found)


def noisy_set(images: Sequence[Tensor], sigmas: Sequence[float], seed: int) -> list[Pair]:
    """Return images with noise, whose levels take turns."""
    generator = torch.Generator().manual_seed(seed)
    levels = [sigmas[index % len(sigmas)] for index in range(len(images))]
    return [Pair(add_noise(image, sigma, generator), image, sigma) for image, sigma in zip(images, levels, strict=True)]


def _learn_many_levels(settings: Settings, images: Images, tables: Tables, facts: Row, out: Path) -> None:
    """Train a network and a single λ on crops of many noise levels, and compare them on the test sets."""
    generator = torch.Generator().manual_seed(settings.seed + 3)
    truth = crops(images[settings.train], settings.pool, settings.pool_crop, generator)
    low, high = min(settings.sigmas), max(settings.sigmas)
    sigma = low + (high - low) * torch.rand(settings.pool, generator=generator)
    noisy = add_noise(truth, sigma, generator)
    start = math.log(facts["learned_tv"])
    predictors = {"one λ for all": ConstantStrength(start), "network": StrengthPredictor(start, generator)}
    tables |= {"training": [], "predictor": []}
    for name, predictor in predictors.items():
        begun = time.process_time()
        seen = train_predictor(predictor, noisy, truth, settings.training, generator)
        facts[f"{name}: CPU s"] = time.process_time() - begun
        tables["training"] += [
            {"method": name, "step": step, "psnr": f"{quality:.4f}"} for step, quality in enumerate(seen.psnr)
        ]
    facts |= {
        "weights": n_weights(predictors["network"]),
        "constant": predictors["one λ for all"](noisy[:1]).exp().item(),
    }
    slope = facts["learned_tv"] / settings.sigma
    for number, name in enumerate(settings.tests):
        levels = [(sigma,) for sigma in settings.sigmas] if number == 0 else [settings.sigmas]
        for turn, sigmas in enumerate(levels):
            pairs = noisy_set(images[name], sigmas, settings.seed + 10 + turn)
            tables["predictor"] += [
                {"set": name, **row} for pair in pairs for row in _compare(settings, pair, predictors, slope)
            ]


@torch.no_grad()
def _compare(settings: Settings, pair: Pair, predictors: dict[str, Any], slope: float) -> list[Row]:
    """Return a row for each way to choose λ of one image."""
    chosen = {name: predictor(pair.noisy[None]).item() for name, predictor in predictors.items()}
    chosen["λ ∝ σ, σ known"] = math.log(slope * pair.sigma)
    ways = sorted(chosen, key=chosen.__getitem__)
    found = along_grid("tv", pair, [chosen[way] for way in ways], settings.solver_steps * 2)
    rows = dict(zip(ways, zip([chosen[way] for way in ways], found.tolist(), strict=True), strict=True))
    strengths = [math.log(pair.sigma * factor) for factor in np.geomspace(0.25, 1.5, 12)]
    best = along_grid("tv", pair, strengths, settings.solver_steps)
    rows["best λ of each image"] = (strengths[int(best.argmax())], best.max().item())
    return [
        {"sigma": f"{pair.sigma:.6g}", "method": way, "strength": f"{math.exp(at):.6g}", "psnr": f"{quality:.4f}"}
        for way, (at, quality) in rows.items()
    ]  # fmt: skip


def _check_precision(settings: Settings, images: Images, tables: Tables, facts: Row, out: Path) -> None:
    """Compare float32 along the grid with float64 solved further, on one image."""
    (pair,) = noisy_set(images[settings.tests[-1]][:1], (settings.sigma,), settings.seed + 2)
    half, ratio, at = settings.grid_half, math.log(settings.grid_ratio), math.log(facts["learned_tv"])
    strengths = [at + ratio * k for k in range(-half, half + 1)]
    fast = along_grid("tv", pair, strengths, settings.solver_steps)
    double = Pair(pair.noisy.double(), pair.truth.double(), pair.sigma)
    exact = along_grid("tv", double, strengths, 10 * settings.solver_steps)
    facts["float32_error_db"] = (fast.double() - exact).abs().max().item()


def _save_pictures(settings: Settings, images: Images, tables: Tables, facts: Row, out: Path) -> None:
    """Write noisy, Tikhonov, total variation and truth of the first image of the first test set, side by side."""
    from PIL import Image

    (pair,) = noisy_set(images[settings.tests[0]][:1], (settings.sigma,), settings.seed + 2)
    smooth = tikhonov(pair.noisy, torch.tensor(math.log(facts["learned_tikhonov"])))
    variation, _ = start_point(pair.noisy, torch.tensor(math.log(facts["learned_tv"])), None, settings.solver_steps)
    panels = {"noisy": pair.noisy, "Tikhonov": smooth, "total variation": variation, "truth": pair.truth}
    facts["pictures"] = {
        name: psnr(panel, pair.truth).item() for name, panel in panels.items() if name != "truth"
    }  # fmt: skip
    strip = torch.cat([panel.clamp(0, 1) for panel in panels.values()], 1)
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * strip).round().to(torch.uint8).numpy()).save(out / "images.png")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
