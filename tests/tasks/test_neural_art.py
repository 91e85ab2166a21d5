"""The loss is what it says, its gradient too, and photographs of one split never show in another."""

import itertools
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from tasks import DataError, NeuralArt
from tasks.features import build_network, load_network
from tasks.neural_art import _minibatch, _painting_grams, gram, variation
from tasks.photographs import PHOTOGRAPHS, _published, crop, decode, n_photographs, photograph, style_picture
from tasks.task import SPLITS

REAL = os.environ.get("L2O_DATA")
needs_data = pytest.mark.skipif(
    not REAL or not Path(REAL, "art").is_dir() or not Path(REAL, "derain").is_dir(), reason="needs L2O_DATA/art, derain"
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A file of random weights, so large that no layer fades away."""
    with torch.device("meta"):
        expected = build_network("squeezenet1_1").state_dict()
    generator = seeded(7)
    state = {
        name: torch.randn(t.shape, generator=generator)
        * (2 / max(1, t[0].numel())) ** 0.5
        * (1 if t.dim() > 1 else 0.1)
        for name, t in expected.items()
    }
    path = tmp_path_factory.mktemp("nets") / "random.pth"
    torch.save(state, path)
    return str(path)


@pytest.fixture
def family(weights, float64) -> NeuralArt:
    """A tiny family on the embedded photographs."""
    return NeuralArt(size=19, styles=("flower", "china"), weights=weights, content_layer=3, style_layers=(1, 4))


def drawn(family: NeuralArt, n: int = 3, split="train"):
    """A picture that has moved from its start, and the minibatch."""
    generator = seeded(3)
    tasks = family.sample_tasks(n, generator)
    params = family.init_params(tasks, n, generator)
    shift = 0.1 * torch.randn(params["image"].shape, generator=generator)
    return {"image": params["image"] + shift}, tasks, family.sample_batch(tasks, n, split, generator)


def test_gram_and_variation_equal_naive_loops(float64):
    F, x = torch.randn(2, 3, 4, 5, generator=seeded()), torch.rand(2, 3, 4, 5, generator=seeded(1))
    for n in range(2):
        for a, b in itertools.product(range(3), repeat=2):
            value = sum(float(F[n, a, i, j] * F[n, b, i, j]) for i in range(4) for j in range(5)) / 20
            assert float(gram(F)[n, a, b]) == pytest.approx(value, rel=1e-12)
        cells = list(itertools.product(range(3), range(4), range(5)))
        down = [float(x[n, c, i + 1, j] - x[n, c, i, j]) ** 2 for c, i, j in cells if i < 3]
        right = [float(x[n, c, i, j + 1] - x[n, c, i, j]) ** 2 for c, i, j in cells if j < 4]
        value = sum(down) / len(down) + sum(right) / len(right)
        assert float(variation(x)[n]) == pytest.approx(value, rel=1e-12)


def test_loss_is_the_stated_sum_of_relative_errors(family):
    params, _, batch = drawn(family)
    content = family.sample_batch({"position": torch.zeros(1, 4), "style": torch.zeros(1).long()}, 1, "train", seeded())
    assert content["start"].shape == (1, 3, 19, 19)
    network, picture = family.convnet(batch["start"]), batch["start"] + params["image"]
    for i in range(3):
        found, target = (network(x[i : i + 1], [1, 3, 4]) for x in (picture, batch["start"]))
        expected = (found[3] - target[3]).square().sum() / target[3].square().sum()
        for layer in (1, 4):
            matrix = batch[f"style.{layer}"][i]
            expected = expected + 5 * (gram(found[layer])[0] - matrix).square().sum() / matrix.square().sum()
        expected = expected + 20 * variation(picture[i])
        torch.testing.assert_close(family.loss(params, {}, batch)[i], expected, rtol=1e-12, atol=0)


def test_gradient_equals_central_differences(family):
    params, _, batch = drawn(family)
    image = params["image"].requires_grad_()
    (gradient,) = torch.autograd.grad(family.loss({"image": image}, {}, batch).sum(), [image])
    direction = torch.randn(image.shape, generator=seeded(4))
    # Small, so that few of the ReLUs' kinks lie in between.
    with torch.no_grad():
        ahead, behind = (family.loss({"image": image + step * direction}, {}, batch).sum() for step in (1e-7, -1e-7))
    torch.testing.assert_close((gradient * direction).sum(), (ahead - behind) / 2e-7, rtol=1e-5, atol=0)


def test_batch_of_tasks_equals_tasks_on_their_own(family):
    params, tasks, batch = drawn(family)
    together = family.parts(params, batch)
    torch.testing.assert_close(family.loss(params, tasks, batch), sum(together), rtol=1e-12, atol=0)
    for i in range(3):
        alone = family.parts({"image": params["image"][i]}, {name: tensor[i] for name, tensor in batch.items()})
        for one, all_of_them in zip(alone, together, strict=True):
            assert one.shape == ()
            torch.testing.assert_close(one, all_of_them[i], rtol=1e-12, atol=0)
        share = family.sample_share(tasks, 3, "train", seeded(), slice(i, i + 1))
        for name in batch:
            torch.testing.assert_close(share[name][0], batch[name][i], rtol=1e-12, atol=1e-13)
    empty = family.sample_share(tasks, 3, "train", seeded(), slice(0, 0))
    assert empty["start"].shape == (0, 3, 19, 19)


def test_targets_are_computed_once(family):
    _, tasks, batch = drawn(family)
    again = family.sample_batch(tasks, 3, "train", seeded(9))
    assert again is not batch and all(again[name] is batch[name] for name in batch)


def test_start_is_the_photograph_or_noise(weights, float64):
    content, noise = (NeuralArt(size=17, weights=weights, initial=kind, noise=0.3) for kind in ("content", "noise"))
    tasks = content.sample_tasks(2, seeded())
    batches = [family.sample_batch(tasks, 2, "train", seeded()) for family in (content, noise)]
    starts = [family.init_params(tasks, 2, seeded()) for family in (content, noise)]
    assert (starts[0]["image"] == 0).all() and (batches[1]["start"] == 0.5).all()
    assert content.parts(starts[0], batches[0]).content.abs().max() == 0
    assert 0.27 < starts[1]["image"].std() < 0.33
    torch.testing.assert_close(batches[0]["content"], batches[1]["content"])


def test_painting_the_painting_has_no_style_loss(family):
    painting = torch.rand(3, 21, 25, generator=seeded())
    batch = family.targets(torch.stack([painting, painting.flip(-1)]), family.style_grams(painting))
    parts = family.parts({"image": torch.zeros(2, 3, 21, 25)}, batch)
    assert parts.style[0] < 1e-25 < 1e-4 < parts.style[1]


def test_splits_have_disjoint_photographs():
    names = [file.name for files in PHOTOGRAPHS.values() for file in files]
    assert len(names) == len(set(names)) == 37 and all(PHOTOGRAPHS[split] for split in SPLITS)
    assert len({file.sha256 for files in PHOTOGRAPHS.values() for file in files}) == 37
    wholes = [photograph("embedded", split, 0) for split in SPLITS]
    for one, other in ((0, 1), (2, 3)):  # the halves of one photograph
        assert one != other and wholes[one].shape == wholes[other].shape == (3, 427, 320)
        assert torch.equal(torch.cat([wholes[one], wholes[other]], -1), style_picture(("china", "flower")[one // 2]))


@needs_data
def test_all_published_photographs_and_paintings_are_there():
    for split in SPLITS:
        assert n_photographs("art", split) == len(PHOTOGRAPHS[split])
        for i in range(len(PHOTOGRAPHS[split])):
            assert min(photograph("art", split, i).shape[1:]) >= 300
    assert {style_picture(s).shape[0] for s in ("starry_night_google", "the_scream", "composition_vii")} == {3}


def test_a_crop_lies_where_its_fractions_say():
    picture = torch.arange(3 * 40 * 60).view(3, 40, 60).remainder(251).to(torch.uint8)
    assert torch.equal(crop(picture, 20, (0.0, 0.0, 0.0)), picture[:, :20, :20] / 255)
    assert torch.equal(crop(picture, 40, (0.5, 0.5, 1.0)), picture[:, :, 10:50] / 255)


def test_a_path_is_a_style_upright_and_without_alpha(tmp_path, weights):
    image = Image.new("RGBA", (8, 4), (255, 0, 0, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90°
    image.save(tmp_path / "red.png", exif=exif)
    assert style_picture(str(tmp_path / "red.png")).shape == (3, 8, 4)
    family = NeuralArt(size=17, styles=(str(tmp_path / "red.png"),), weights=weights)
    batch = family.sample_batch(family.sample_tasks(1, seeded()), 1, "train", seeded())
    assert batch["style.7"].shape == (1, 256, 256)


def test_files_that_are_missing_or_no_images_are_named(tmp_path, monkeypatch):
    for cache in (_published, _minibatch, _painting_grams, load_network):
        cache.cache_clear()
    monkeypatch.delenv("L2O_DATA", raising=False)
    with pytest.raises(
        DataError, match='china.jpg is needed; set L2O_DATA .* art/content; photographs "embedded" with'
    ):
        photograph("art", "train", 0)
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    with pytest.raises(DataError, match="001.png is needed, but it is not in .*/derain/gt"):
        photograph("art", "train", 2)
    with pytest.raises(DataError, match="'mona' is neither one of starry_night_google, .* flower nor a file"):
        style_picture("mona")
    with pytest.raises(DataError, match="x.png is not an image that Pillow reads"):
        decode(b"nothing", "x.png")
    family = NeuralArt()
    with pytest.raises(DataError, match="weights of squeezenet1_1 were not found"):
        family.sample_batch(family.sample_tasks(1, seeded()), 1, "train", seeded())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "resnet"}, "network must be one of"),
        ({"initial": "white"}, "initial must be one of content, noise, got 'white'"),
        ({"photographs": "mine"}, "photographs must be one of embedded, art, got 'mine'"),
        ({"styles": ()}, "styles must be a tuple of at least one"),
        ({"styles": "flower"}, "styles must be a tuple"),
        ({"style_weight": -1.0}, "style_weight must be a number of at least 0"),
        ({"noise": float("nan")}, "noise must be a number of at least 0"),
        ({"style_layers": ()}, "style_layers must be a tuple of indices"),
        ({"content_layer": 13}, r"layers must be indices from 0 to 12 in the features of squeezenet1_1, got \(13,"),
        ({"size": 14}, "size must be an integer of at least 15 for layers"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NeuralArt(**options)


def test_splits_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="split must be one of train, inner_valid, outer_valid, test, got 'all'"):
        n_photographs("embedded", "all")
