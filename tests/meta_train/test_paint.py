"""`l2o paint`: every optimizer spends the same computations, the best picture is kept, errors come before the work."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import l2o as learned
from l2o.rules import SGD, CoordinatewiseLSTM, LSTMConfig, SGDConfig
from meta_train import cli, paint_command
from meta_train.paint import Album, build_optimizer, paint, scaled, start
from meta_train.paint_command import strip_steps
from meta_train.picture_files import check_output, join, write_picture
from tasks import features
from tasks.features import build_network, load_network
from tasks.neural_art import NeuralArt
from tasks.photographs import resize, style_picture

REAL = os.environ.get("L2O_DATA", "/nonexistent")
needs_nets = pytest.mark.skipif(not Path(REAL, "nets").is_dir(), reason="needs L2O_DATA/nets")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A file of random weights, so large that no layer fades away."""
    with torch.device("meta"):
        expected = build_network("squeezenet1_1").state_dict()
    generator, state = seeded(7), {}
    for name, t in expected.items():
        size = (2 / max(1, t[0].numel())) ** 0.5 * (1 if t.dim() > 1 else 0.1)
        state[name] = size * torch.randn(t.shape, generator=generator)
    path = tmp_path_factory.mktemp("nets") / "random.pth"
    torch.save(state, path)
    return str(path)


@pytest.fixture
def family(weights) -> NeuralArt:
    """A tiny family."""
    return NeuralArt(size=24, weights=weights, content_layer=3, style_layers=(1, 4))


@pytest.fixture
def rule(tmp_path) -> Path:
    """A learned rule that descends, and is not a good one."""
    return learned.save_rule(SGD(SGDConfig(lr=0.05)), tmp_path / "rule")


@pytest.fixture
def l2o(capsys, monkeypatch, tmp_path, weights):
    """Run `l2o paint` with random weights in an empty directory; return exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        status, options = 0, () if "--network" in arguments else ("--weights", weights, "--size", "40", "--steps", "4")
        try:
            cli.main([str(argument) for argument in ("paint", *arguments, *options, "--threads", 1)])
        except SystemExit as exit_:
            status = exit_.code or 0
        return status, *capsys.readouterr()

    return run


def pixels(path: str | Path) -> np.ndarray:
    """An image file, shape (height, width, 3)."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"), dtype=int)


def begun(family: NeuralArt, seed: int = 0):
    content, style = (resize(style_picture(name), 24, 37) for name in ("china", "flower"))
    return start(family, content, style, seeded(seed))


def painted(family, name, steps, lr=None, checkpoint=None, wanted=()) -> Album:
    batch, image = begun(family)
    album = Album(wanted)
    paint(family, batch, image, build_optimizer(name, image, lr, checkpoint), steps, album)
    return album


# ---------------------------------------------------------------- the loop


@pytest.mark.parametrize("name", ["learned", "adam", "lbfgs"])
@pytest.mark.parametrize("steps", [1, 7, 23])
def test_every_optimizer_computes_the_loss_exactly_as_often_as_asked(name, steps, family, rule, monkeypatch):
    count, original = [], NeuralArt.parts
    monkeypatch.setattr(NeuralArt, "parts", lambda *arguments: (count.append(1), original(*arguments))[1])
    album = painted(family, name, steps, checkpoint=rule if name in ("learned", "lstm") else None)
    assert len(count) == album.step == steps and album.ended == ""


def test_adam_and_a_learned_rule_walk_as_in_a_plain_loop(family, rule):
    factor = 24 * 37 / 64**2  # sums over pixels, in units of a picture of 64×64
    for name, build in (
        ("adam", lambda image: torch.optim.Adam([image], lr=0.02)),
        (
            "lstm",
            lambda image: torch.optim.SGD([image], lr=0.02 * 0.05 * factor),
        ),  # the rule is SGD of 0.05, and lr multiplies
    ):
        batch, image = begun(family)
        optimizer, losses = build(image), []
        for _ in range(6):
            optimizer.zero_grad()
            loss = family.loss({"image": image}, {}, batch).sum()
            losses.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
        album = painted(family, name, 6, 0.02, rule if name in ("learned", "lstm") else None, wanted=range(1, 7))
        best = np.minimum.accumulate(losses)
        assert [look.loss for look in album.strip] == pytest.approx(best, rel=1e-5)  # float32, other order of sums
        assert best[-1] < 0.99 * losses[0]


def test_the_best_picture_is_kept_whatever_comes_after(family):
    album = painted(family, "adam", 12, lr=3.0, wanted=range(1, 13))
    losses = []
    batch, image = begun(family)
    optimizer = build_optimizer("adam", image, 3.0)
    paint(family, batch, image, optimizer, 12, Album(), lambda look: losses.append(look.loss))
    assert max(losses[1:]) > losses[0]  # such steps are much too long
    assert [look.loss for look in album.strip] == list(np.minimum.accumulate(losses))
    assert album.best.loss == min(losses)
    again = sum(family.parts({"image": album.best.image}, batch))
    assert float(again) == pytest.approx(min(losses), rel=1e-5)  # it is the picture of that loss


def test_lbfgs_is_ahead_of_adam_after_equal_work(family):
    assert painted(family, "lbfgs", 40).best.loss < painted(family, "adam", 40).best.loss


def test_a_diverging_picture_ends_the_painting_and_the_best_stays(family, tmp_path):
    wild = learned.save_rule(SGD(SGDConfig(lr=1e30)), tmp_path / "wild")
    album = painted(family, "lstm", 50, checkpoint=wild)
    assert album.step < 50 and "no longer finite" in album.ended
    assert album.best.step == 1 and album.best.image.isfinite().all()


def test_a_picture_that_stands_still_ends_the_painting(family, tmp_path):
    idle = learned.save_rule(SGD(SGDConfig(lr=1e-30)), tmp_path / "idle")
    batch, _ = begun(family)
    image, album = torch.ones_like(batch["start"], requires_grad=True), Album()
    paint(family, batch, image, build_optimizer("lstm", image, checkpoint=idle), 50, album)
    assert album.step == 1 and "does not move" in album.ended


def test_an_interruption_loses_nothing(family):
    batch, image = begun(family)
    album = Album()
    with pytest.raises(KeyboardInterrupt):
        paint(family, batch, image, build_optimizer("adam", image), 9, album,
              lambda look: signal.raise_signal(signal.SIGINT) if look.step == 4 else None)  # fmt: skip
    assert album.step == 4 and album.best.loss < painted(family, "adam", 1).best.loss


def test_noise_follows_the_seed_and_the_content_needs_none(weights):
    family = NeuralArt(size=24, weights=weights, content_layer=3, style_layers=(1, 4), initial="noise", noise=0.1)
    (batch, first), (_, same), (_, other) = (begun(family, seed) for seed in (3, 3, 4))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert float(first.detach().std()) == pytest.approx(0.1, rel=0.05) and (batch["start"] == 0.5).all()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("sgd",), "optimizer must be one of learned, lstm, adam, lbfgs, got 'sgd'"),
        (("adam", 0.0), "lr must be a positive number, got 0.0"),
        (("lbfgs", float("nan")), "lr must be a positive number"),
        (("adam", None, "lstm-mnist"), "checkpoint is for --optimizer learned"),
        (("lstm", None, "nowhere"), "nowhere"),
        (("lstm", None, "alista"), "alista is a ALISTA, which steps on a problem's structure and not on gradients"),
    ],
)
def test_wrong_optimizers_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        build_optimizer(arguments[0], torch.zeros(3, requires_grad=True), *arguments[1:])


def test_pictures_too_narrow_for_the_network_are_refused(family):
    with pytest.raises(ValueError, match="the style x would be painted at 2048×2 pixels; squeezenet1_1 .* crop the"):
        scaled(torch.zeros(3, 4, 4000, dtype=torch.uint8), 24, family, "the style x")
    with pytest.raises(ValueError, match="painted at 4×4 pixels; .* take a larger --size"):
        scaled(torch.zeros(3, 50, 50, dtype=torch.uint8), 4, family, "x")
    assert scaled(torch.zeros(3, 50, 71, dtype=torch.uint8), 24, family, "x").shape == (3, 24, 34)
    assert scaled(torch.zeros(3, 1, 1, dtype=torch.uint8), 24, family, "x").shape == (3, 24, 24)


# ---------------------------------------------------------------- files


def test_a_written_picture_is_the_picture(tmp_path):
    picture = torch.rand(3, 5, 7, generator=seeded())
    write_picture(picture, tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), (255 * picture).round().permute(1, 2, 0).numpy())
    for ending in ("jpg", "webp", "TIF", "bmp", "gif"):
        write_picture(picture, tmp_path / f"a.{ending}")
        assert pixels(tmp_path / f"a.{ending}").shape == (5, 7, 3)
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*"))


def test_pictures_side_by_side():
    left, right = torch.zeros(3, 2, 3), torch.full((3, 2, 3), 0.5)
    joined = join([left, right])
    assert joined.shape == (3, 2, 10)
    assert torch.equal(joined[..., :3], left) and torch.equal(joined[..., 7:], right) and (joined[..., 3:7] == 1).all()


@pytest.mark.parametrize(
    "name, words",
    [
        ("a.xyz", "Pillow writes no colour pictures of any size as .xyz; take .png"),
        ("a", "Pillow writes no colour pictures of any size as files without an ending"),
        ("a.xbm", "Pillow writes no colour pictures of any size as .xbm"),  # Pillow writes it, but black and white only
        ("a.psd", "Pillow writes no colour pictures of any size as .psd"),  # Pillow only reads it
        ("a.ico", "Pillow writes no colour pictures of any size as .ico"),  # at most 256 pixels wide
        ("no/such/a.png", "no/such, where a.png is to be written, is no folder; make it, or choose another"),
        ("file/a.png", "file, where a.png is to be written, is no folder"),
        ("folder.png", "folder.png is a folder; name a file in it"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_the_work(name, words, tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=words):
        check_output(tmp_path / name)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that refuses files to everyone")
def test_a_folder_that_refuses_files_is_said(tmp_path):
    with pytest.raises(ValueError, match="/proc/self, where a.png is to be written, refuses files"):
        check_output(Path("/proc/self/a.png"))


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("name", ["lstm", "adam", "lbfgs"])
def test_the_command_paints_and_is_deterministic(name, l2o, rule, tmp_path):
    options = ("--checkpoint", rule) if name in ("learned", "lstm") else ()
    results = [l2o("china", "flower", "-o", f"{i}.png", "--optimizer", name, *options) for i in range(2)]
    assert [result[0] for result in results] == [0, 0], results
    assert "content: china, seen at 60×40 pixels" in results[0][1]
    assert "the least of 4 computations of loss and gradient" in results[0][1]
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    image = pixels("0.png")
    untouched = 255 * resize(style_picture("china"), 40, 60).permute(1, 2, 0).numpy()
    assert image.shape == (40, 60, 3) and np.abs(image - untouched).max() > 2


def test_a_learned_lstm_paints(l2o, tmp_path):
    learned.save_rule(CoordinatewiseLSTM(LSTMConfig(hidden_size=4), seeded()), tmp_path / "mine")
    assert l2o("china", "flower", "-o", "a.png", "--checkpoint", "mine")[0] == 0 and Path("a.png").is_file()


def test_own_files_of_any_size_are_painted_in_their_shape(l2o, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (53, 91, 4), dtype=np.uint8)
    Image.fromarray(image).save("photo.png")
    Image.fromarray(image[..., 0]).save("style.jpg")
    status, output, _ = l2o("photo.png", "style.jpg", "-o", "a.jpg", "--optimizer", "adam", "--style-size", 50)
    assert status == 0 and "style: style.jpg, seen at 86×50 pixels" in output
    assert pixels("a.jpg").shape == (40, 69, 3)


def test_a_long_picture_is_reduced_with_a_note(l2o):
    Image.new("RGB", (9000, 150), "red").save("long.png")
    status, output, errors = l2o("long.png", "flower", "-o", "a.png", "--optimizer", "adam")
    assert status == 0, errors
    assert "long.png, seen at 2048×34 pixels (reduced: the longer side has at most 2048)" in output
    assert output.count("reduced") == 1


def test_the_strip_shows_the_start_first_and_the_painting_last(l2o):
    status, _, _ = l2o("china", "flower", "-o", "a.png", "--strip", "strip.png", "--optimizer", "adam")
    strip, width = pixels("strip.png"), 60
    assert status == 0 and strip.shape == (40, 3 * width + 2 * 4, 3)
    start = (255 * resize(style_picture("china"), 40, 60)).round().permute(1, 2, 0).numpy()
    assert np.abs(strip[:, :width] - start).max() <= 1
    assert np.abs(strip[:, -width:] - pixels("a.png")).max() <= 1
    assert strip_steps(1) == (1,) and strip_steps(4) == (1, 2, 4) and strip_steps(10**6)[-1] == 10**6


def test_an_interrupted_painting_is_saved_and_said(l2o, monkeypatch):
    advance = paint_command._advance
    monkeypatch.setattr(
        paint_command,
        "_advance",
        lambda bar, look: signal.raise_signal(signal.SIGINT) if look.step == 3 else advance(bar, look),
    )
    write = paint_command.write_picture

    def impatient(picture, path):
        signal.raise_signal(signal.SIGINT)  # a second one, while the picture is written
        write(picture, path)

    monkeypatch.setattr(paint_command, "write_picture", impatient)
    status, _, errors = l2o("china", "flower", "-o", "a.png", "--optimizer", "adam", "--strip", "s.png")
    assert (status, pixels("a.png").shape, pixels("s.png").shape) == (130, (40, 60, 3), (40, 2 * 60 + 4, 3))
    assert errors.startswith("l2o: interrupted at step 3 of 4; a.png holds the best picture so far (content ")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("no.jpg", "flower", "-o", "a.png"), "'no.jpg' is neither one of starry_night_google, "),
        (("text.jpg", "flower", "-o", "a.png"), "text.jpg is not an image that Pillow reads"),
        (("china", "text.jpg", "-o", "a.png"), "text.jpg is not an image that Pillow reads"),
        (("china", ".", "-o", "a.png"), ". is a folder, not an image"),
        (("china", "flower", "-o", "no/a.png"), "no, where a.png is to be written, is no folder"),
        (("china", "flower", "-o", "a.png", "--strip", "a.doc"), "writes no colour pictures of any size as .doc"),
        (("china", "flower", "-o", "a.png", "--strip", "a.png"), "cannot be both the painting and the strip"),
        (("photo.png", "flower", "-o", "photo.png"), "photo.png is one of the images to read"),
        (("china", "flower", "-o", "a.png", "--style-size", "0"), "style_size must be at least 1, got 0"),
        (("china", "flower", "-o", "a.png", "--style-size", "3"), "take a larger --style-size"),
        (("china", "flower", "-o", "a.png", "--seed", str(2**64)), "seed must be at least 0 and below 2^63"),
        (("china", "flower", "-o", "a.png", "--style-weight", "-1"), "style_weight must be a number of at least 0"),
        (("china", "flower", "-o", "a.png", "--optimizer", "adam", "--lr", "0"), "lr must be a positive number"),
        (
            ("china", "flower", "-o", "a.png", "--network", "vgg19"),
            "download https://download.pytorch.org/models/vgg19",
        ),
        (
            ("china", "flower", "-o", "a.png", "--network", "vgg16", "--size", "3"),
            "size must be an integer of at least",
        ),
        (("china", "flower", "-o", "a.png", "--network", "vgg16", "--steps", "0"), "steps must be at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(arguments, words, l2o, tmp_path):
    Path("text.jpg").write_text("no picture")
    Image.new("RGB", (50, 50)).save("photo.png")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    status, _, errors = l2o(*arguments)
    assert status == 2 and errors.startswith("l2o: ") and words in errors and errors.count("\n") == 1, errors
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_missing_weights_say_where_to_get_them(l2o, monkeypatch, tmp_path):
    load_network.cache_clear()  # an earlier test of this process may have read them
    monkeypatch.delenv("L2O_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(features, "URL", "http://127.0.0.1:9")  # nobody is there
    status, _, errors = l2o("china", "flower", "-o", "a.png", "--network", "squeezenet1_1", "--size", 40)
    assert status == 2 and errors.count("\n") == 1
    for words in ("L2O_DATA is not set", "$L2O_DATA/nets", "download http://127", "--weights FILE"):
        assert words in errors


def test_a_painting_that_is_not_at_hand_can_be_any_other(l2o, monkeypatch):
    monkeypatch.delenv("L2O_DATA", raising=False)
    status, _, errors = l2o("china", "the_scream", "-o", "a.png")
    assert status == 2 and "set L2O_DATA" in errors and "any image file will do in its place" in errors


@needs_nets
def test_with_trained_weights_the_style_comes_much_closer(tmp_path):
    family = NeuralArt(size=40, style_weight=30.0)
    content, style = (resize(style_picture(name), 40, 60) for name in ("china", "flower"))
    batch, image = start(family, content, style, seeded())
    album = Album((1,))
    paint(family, batch, image, build_optimizer("lbfgs", image), 60, album)
    assert album.best.parts.style < 0.15 * album.strip[0].parts.style
    assert album.best.parts.content < 1.5  # of 1, what a grey picture would have: the photograph is still there
