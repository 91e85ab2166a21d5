"""The networks are torchvision's by name and shape, and with trained weights they know what they see."""

import functools
import hashlib
import io
import os
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tasks import DataError, features
from tasks.data_files import DataFile
from tasks.features import FILES, build_network, fill, load_network
from tasks.photographs import decode, resize

REAL = os.environ.get("L2O_DATA")
needs_data = pytest.mark.skipif(
    not REAL or not Path(REAL, "nets").is_dir() or not Path(REAL, "art").is_dir(), reason="needs L2O_DATA/nets and art"
)


def random_state(name: str = "squeezenet1_1") -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        expected = build_network(name).state_dict()
    generator = torch.Generator().manual_seed(1)
    return {name: 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in expected.items()}


@needs_data
@pytest.mark.parametrize(("file", "what"), [("coffee.png", "espresso"), ("chelsea.png", "cat")])
def test_squeezenet_knows_an_espresso_and_a_cat(file, what):
    words = Path(REAL, "nets", "imagenet_synset_words.txt").read_text().splitlines()
    photo = decode(Path(REAL, "art", "content", file).read_bytes(), file)
    height, left = photo.shape[1], (photo.shape[2] - photo.shape[1]) // 2
    square = resize(photo[:, :, left : left + height], 224, 224)
    chances = load_network("squeezenet1_1").logits(square[None]).softmax(-1)[0]
    assert chances.shape == (1000,) and what in words[int(chances.argmax())]
    assert sum(chances[i] for i, word in enumerate(words) if what in word) > 0.9


@needs_data
def test_edge_tuned_vgg_loads_from_half_precision():
    network = load_network("vgg16_hed")
    assert network.features[0].weight.dtype == torch.float32 and len(network.features) == 23
    assert network(torch.full((1, 3, 16, 16), 0.5), [22])[22].shape == (1, 512, 2, 2)


@pytest.mark.parametrize(
    ("network", "count", "shapes"),
    [
        ("squeezenet1_1", 1_235_496, {"features.12.expand3x3.weight": (256, 64, 3, 3), "classifier.1.bias": (1000,)}),
        ("vgg16", 14_714_688, {"features.28.weight": (512, 512, 3, 3), "features.5.weight": (128, 64, 3, 3)}),
        ("vgg19", 20_024_384, {"features.34.bias": (512,), "features.16.weight": (256, 256, 3, 3)}),
    ],
)
def test_names_and_shapes_are_those_of_torchvision(network, count, shapes):
    """Counts as torchvision documents them, for VGG without the classifier."""
    with torch.device("meta"):
        state = build_network(network).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == count
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_pooling_of_squeezenet_rounds_up():
    network = build_network("squeezenet1_1")
    shapes = {k: tuple(a.shape[1:]) for k, a in network(torch.rand(2, 3, 64, 64), [1, 2, 5, 12]).items()}
    assert shapes == {1: (64, 31, 31), 2: (64, 15, 15), 5: (128, 7, 7), 12: (512, 3, 3)}
    uneven = network(torch.rand(1, 3, 66, 66), [2])[2]  # 32 → 15.5
    assert uneven.shape[-1] == 16


def test_pictures_are_normalised_inside_and_nothing_is_trained():
    network = build_network("squeezenet1_1")
    grey = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 9, 9)
    bias = network.features[0].bias
    torch.testing.assert_close(network(grey, [0])[0], bias.view(1, -1, 1, 1).expand(1, 64, 4, 4))
    assert not network.training and not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_weights_come_from_any_of_three_formats(tmp_path, suffix):
    state, path = random_state(), str(tmp_path / f"weights{suffix}")
    if suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()})
    else:
        torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    before = torch.get_rng_state()
    network = load_network("squeezenet1_1", path)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not any(p.requires_grad for p in network.parameters())
    assert load_network("squeezenet1_1", path) is network


def test_loading_is_strict_about_names_and_shapes():
    network, state = build_network("squeezenet1_1"), random_state()
    missing = {name: tensor for name, tensor in state.items() if name != "features.0.bias"}
    with pytest.raises(
        DataError, match=r"x is not of this network: 1 names are missing \['features.0.bias'\], 0 unknown"
    ):
        fill(network, missing, "x")
    with pytest.raises(DataError, match=r"0 names are missing \[\], 1 unknown \['head'\]"):
        fill(network, state | {"head": torch.ones(1)}, "x")
    with pytest.raises(DataError, match=r"x: features.0.bias has shape \(3,\), this network \(64,\)"):
        fill(network, state | {"features.0.bias": torch.ones(3)}, "x")


def test_vgg_leaves_out_the_classifier_of_a_file(tmp_path):
    network, state = build_network("vgg16_hed"), random_state("vgg16_hed")
    fill(network, state | {"classifier.0.weight": torch.ones(1)}, "x")
    assert torch.equal(network.features[2].weight, state["features.2.weight"])
    with pytest.raises(ValueError, match="no classifier here; only squeezenet1_1 has"):
        network.logits(torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("content", [b"no weights", b"hello, I am no picture\n" * 20, b""])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_files_that_hold_no_weights_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as weights"):
        load_network("squeezenet1_1", str(path))


def test_arrays_that_are_no_weights_are_refused(tmp_path):
    path = tmp_path / "weights.npz"
    for save in (lambda file: np.save(file, np.ones(3)), lambda file: np.savez(file, name=np.array(["text"]))):
        with path.open("wb") as file:
            save(file)
        with pytest.raises(DataError, match="cannot be read as weights"):
            load_network("squeezenet1_1", str(path))
    torch.save({1: torch.ones(2)}, tmp_path / "numbers.pth")
    with pytest.raises(DataError, match="holds no state dict"):
        load_network("squeezenet1_1", str(tmp_path / "numbers.pth"))


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match="holds no state dict, a mapping of names to tensors, but a list"):
        load_network("squeezenet1_1", str(tmp_path / "list.pth"))
    with pytest.raises(
        DataError, match=r"nowhere.pth is not a file; .* download https://download.pytorch.org/models/vgg19"
    ):
        load_network("vgg19", str(tmp_path / "nowhere.pth"))


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No data folder, an empty cache, nobody at the address; networks loaded before or after do not count."""
    monkeypatch.delenv("L2O_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "URL", "http://127.0.0.1:9/models")
    load_network.cache_clear()
    yield tmp_path / "cache" / "l2o" / "nets"
    load_network.cache_clear()


@pytest.fixture
def served(tmp_path, monkeypatch, offline):
    """A server on this machine with weights that are published as torchvision's are."""
    content = io.BytesIO()
    torch.save(random_state(), content)
    digits = hashlib.sha256(content.getvalue()).hexdigest()[:8]
    path = tmp_path / f"squeezenet1_1-{digits}.pth"
    path.write_bytes(content.getvalue())
    handler = functools.partial(Silent, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(features, "URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setitem(features.DOWNLOADS, "squeezenet1_1", DataFile(path.name, None, digits, packed=""))
        yield path
        server.shutdown()


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def test_weights_are_downloaded_checked_and_kept(served, offline, monkeypatch):
    network = load_network("squeezenet1_1")
    assert all(torch.equal(tensor, random_state()[name]) for name, tensor in network.state_dict().items())
    assert [path.name for path in offline.iterdir()] == [served.name]
    load_network.cache_clear()
    monkeypatch.setattr(features, "URL", "http://127.0.0.1:9/models")
    load_network("squeezenet1_1")
    load_network.cache_clear()
    (offline / served.name).write_bytes(served.read_bytes()[:-1])
    with pytest.raises(DataError, match="is damaged or not the published file, and was not used: expected a file with"):
        load_network("squeezenet1_1")


def test_other_weights_than_the_published_ones_are_not_kept(served, offline):
    served.write_bytes(served.read_bytes() + b" ")
    with pytest.raises(DataError, match="could not be downloaded .*another file than the published one"):
        load_network("squeezenet1_1")
    assert not list(offline.iterdir())


def test_missing_weights_say_where_to_get_them(tmp_path, offline, monkeypatch):
    for name, file in (("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"), ("vgg16", "vgg16-397923af.pth")):
        with pytest.raises(DataError) as caught:
            load_network(name)
        text = str(caught.value)
        assert "L2O_DATA is not set" in text and "could not be downloaded (127.0.0.1:9: ConnectionError)" in text
        assert f"download http://127.0.0.1:9/models/{file} and pass its path as weights" in text
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    with pytest.raises(DataError, match="nets has no vgg16_hed200.*weights=PATH of a .npz"):
        load_network("vgg16_hed")
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / FILES["squeezenet1_1"].name).write_bytes(b"damaged")
    with pytest.raises(DataError, match="is damaged or not the published file"):
        load_network("squeezenet1_1")


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match="network must be one of squeezenet1_1, vgg16, vgg16_hed, vgg19, got 'resnet'"):
        build_network("resnet")
