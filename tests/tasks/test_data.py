"""Data sets: splits, damaged files, downloads from a loopback server. Real files are used where L2O_DATA is set."""

import gzip
import hashlib
import io
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import DataError, Samples, load_dataset
from tasks.data import CIFAR10_FILES, IMAGE_SHAPE, MNIST_FILES, SPLIT_SIZES, Minibatches, load_mnist
from tasks.data_files import DataFile, find_or_download, parse_idx, read_verified
from tasks.task import SPLITS

REAL = os.environ.get("L2O_DATA")
needs_mnist = pytest.mark.skipif(not REAL or not Path(REAL, "mnist").is_dir(), reason="needs L2O_DATA/mnist")
needs_cifar10 = pytest.mark.skipif(not REAL or not Path(REAL, "cifar10").is_dir(), reason="needs L2O_DATA/cifar10")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no L2O_DATA, no proxy between us and the loopback server; returns the cache's MNIST folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("L2O_DATA", raising=False)
    return tmp_path / "cache" / "l2o" / "mnist"


def idx(array):
    """An IDX file of unsigned bytes."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def published(name, content):
    """A file as it is published: known by what it holds before compression."""
    return DataFile(name, len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture(scope="module")
def fake_mnist(tmp_path_factory):
    """Files of MNIST's shapes in which image i is filled with i % 250 and has the label i % 10."""
    folder, files = tmp_path_factory.mktemp("fake"), []
    for file, n_images in zip(MNIST_FILES, (60_000, 60_000, 10_000, 10_000), strict=True):
        values = np.arange(n_images)
        if "images" in file.name:
            content = idx(np.broadcast_to((values % 250)[:, None, None], (n_images, 28, 28)))
        else:
            content = idx(values % 10)
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
        files.append(published(file.name, content))
    return folder, tuple(files)


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; where the server cuts, it announces the whole file and delivers half of it."""

    def do_GET(self):
        self.server.requested.append(self.path)
        path = Path(self.server.folder, self.path.strip("/"))
        if not path.exists():
            return self.send_error(404)
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.server.cut else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    """Start loopback servers of folders; each has url and requested."""
    servers = []

    def start(folder, cut=False):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.folder, server.cut, server.requested = folder, cut, []
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def check_splits(splits, name):
    assert tuple(splits) == SPLITS
    assert tuple(len(samples.inputs) for samples in splits.values()) == SPLIT_SIZES[name]
    for samples in splits.values():
        assert samples.inputs.dtype == torch.uint8 and samples.inputs.shape[1:] == IMAGE_SHAPE[name]
        assert samples.targets.dtype == torch.int64 and samples.targets.shape == samples.inputs.shape[:1]
        assert torch.equal(samples.targets.unique(), torch.arange(10))


def test_digits_splits_hold_every_digit_once():
    from sklearn.datasets import load_digits

    splits = load_dataset("digits")
    check_splits(splits, "digits")
    rows = torch.cat([torch.cat([s.inputs.flatten(1), s.targets[:, None]], 1) for s in splits.values()])
    original = torch.from_numpy(np.c_[load_digits().data, load_digits().target]).long()
    assert sorted(rows.tolist()) == sorted(original.tolist())


def test_mnist_splits_partition_the_training_files_and_keep_the_test_files(fake_mnist, monkeypatch):
    folder, files = fake_mnist
    shutil.copytree(folder, folder.parent / "root" / "mnist", dirs_exist_ok=True)
    monkeypatch.setenv("L2O_DATA", str(folder.parent / "root"))
    splits = load_mnist(base_urls=(), files=files)
    assert tuple(len(samples.inputs) for samples in splits.values()) == (50_000, 5_000, 5_000, 10_000)
    for samples in splits.values():  # each image still has its label
        assert torch.equal(samples.inputs[:, 0, 0, 0] % 10, samples.targets)
    training = torch.cat([splits[split].inputs[:, 0, 3, 5] for split in SPLITS[:3]])
    assert torch.equal(training.bincount(), torch.full((250,), 240))
    assert torch.equal(splits["test"].inputs[:, 0, 27, 27], (torch.arange(10_000) % 250).to(torch.uint8))


def test_mnist_is_downloaded_into_the_cache_once(fake_mnist, serve, cache):
    folder, files = fake_mnist
    server = serve(folder)
    splits = load_mnist([server.url], files)
    assert splits["train"].inputs.shape == (50_000, 1, 28, 28)
    assert sorted(path.name for path in cache.iterdir()) == sorted(f"{file.name}.gz" for file in files)
    load_mnist([server.url], files)
    assert sorted(server.requested) == sorted(f"/{file.name}.gz" for file in files)


@pytest.mark.parametrize("offer", [b"<html>not found</html>", None], ids=["another file", "HTTP 404"])
def test_next_mirror_is_tried_when_the_first_does_not_deliver(offer, fake_mnist, serve, tmp_path, cache):
    folder, files = fake_mnist
    for file in files if offer else ():
        (tmp_path / f"{file.name}.gz").write_bytes(offer)
    bad, good = serve(tmp_path), serve(folder)
    reason = "another file than the published one" if offer else "HTTP 404"
    with pytest.raises(DataError, match=rf"could not be downloaded \(127\.0\.0\.1:\d+: {reason}\)"):
        load_mnist([bad.url], files)
    bad.requested.clear()
    load_mnist([bad.url, good.url + "/"], files)
    assert len(bad.requested) == len(good.requested) == 4
    for file in files:
        assert read_verified(cache / f"{file.name}.gz", file)


@pytest.mark.parametrize("compress", [gzip.compress, lambda content: content], ids=["recompressed", "uncompressed"])
def test_a_download_counts_by_what_it_holds_however_it_is_compressed(compress, serve, tmp_path, cache):
    content = idx(np.arange(6).reshape(2, 3))
    (tmp_path / "two-by-three.gz").write_bytes(compress(content))
    file = published("two-by-three", content)
    assert read_verified(find_or_download(file, "mnist", [serve(tmp_path).url]), file) == content
    assert [path.name for path in cache.iterdir()] == ["two-by-three.gz"]


@pytest.mark.parametrize("cut", [False, True])
def test_wrong_or_interrupted_download_leaves_nothing_in_the_cache(cut, fake_mnist, serve, tmp_path, cache):
    folder, files = fake_mnist
    for file in files:
        content = (folder / f"{file.name}.gz").read_bytes()
        (tmp_path / f"{file.name}.gz").write_bytes(content + (b"" if cut else b"!"))
    reason = "ChunkedEncodingError" if cut else "another file than the published one"
    with pytest.raises(DataError, match=rf"train-images.*could not be downloaded \(127\.0\.0\.1:\d+: {reason}\)"):
        load_mnist([serve(tmp_path, cut=cut).url], files)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("root", ["typo", None])
def test_missing_mnist_without_network_says_what_to_do_in_two_lines(root, cache, monkeypatch, tmp_path):
    if root:
        monkeypatch.setenv("L2O_DATA", str(tmp_path / root))
    with pytest.raises(DataError) as caught:
        load_mnist(["http://127.0.0.1:9", "http://127.0.0.1:9/second"])
    first, second = str(caught.value).splitlines()
    where = f"L2O_DATA is {tmp_path / root}" if root else "L2O_DATA is not set"
    assert first.startswith(f"train-images-idx3-ubyte is neither in $L2O_DATA/mnist ({where}) nor in {cache}, ")
    assert first.endswith("could not be downloaded (127.0.0.1:9: ConnectionError, 127.0.0.1:9: ConnectionError).")
    assert second == ("Set L2O_DATA to a folder with the mnist/ files, with or without .gz, or connect to the network.")
    assert not list(cache.iterdir())


def damage_truncate(content):
    return content[:-1000]


def damage_flip(content):
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


def damage_empty(content):
    return b""


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_empty])
@pytest.mark.parametrize("place", ["L2O_DATA", "cache"])
def test_damaged_mnist_file_is_refused_wherever_it_lies(place, damage, fake_mnist, tmp_path, cache, serve, monkeypatch):
    folder, files = fake_mnist
    mnist = cache if place == "cache" else tmp_path / "root" / "mnist"
    shutil.copytree(folder, mnist)
    if place == "L2O_DATA":
        monkeypatch.setenv("L2O_DATA", str(mnist.parent))
    victim = mnist / f"{files[2].name}.gz"
    content = damage(victim.read_bytes())
    victim.write_bytes(content)
    server = serve(folder)
    reason = rf"its {len(content)} bytes of gzip are damaged or cut short"
    if damage is damage_empty:
        reason = rf"expected {files[2].size} bytes.*{files[2].sha256}.*found 0 bytes"
    match = rf"(?s){victim} is damaged.*{reason}"
    with pytest.raises(DataError, match=match):
        load_mnist([server.url], files)
    assert server.requested == [] and victim.read_bytes() == content


def uncompressed(path):
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()


def recompressed(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=9, mtime=1))


def misnamed(path):
    path.rename(path.with_suffix(""))


@pytest.mark.parametrize("change", [uncompressed, recompressed, misnamed])
def test_mnist_files_count_by_what_they_hold_however_they_are_compressed(change, fake_mnist, tmp_path, monkeypatch):
    folder, files = fake_mnist
    shutil.copytree(folder, tmp_path / "root" / "mnist")
    for file in files:
        change(tmp_path / "root" / "mnist" / f"{file.name}.gz")
    monkeypatch.setenv("L2O_DATA", str(tmp_path / "root"))
    splits = load_mnist((), files)
    assert torch.equal(splits["test"].inputs[:, 0, 27, 27], (torch.arange(10_000) % 250).to(torch.uint8))


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_empty])
def test_damaged_uncompressed_mnist_file_is_refused(damage, fake_mnist, cache):
    folder, files = fake_mnist
    shutil.copytree(folder, cache)
    uncompressed(cache / f"{files[2].name}.gz")
    victim = cache / files[2].name
    victim.write_bytes(damage(victim.read_bytes()))
    with pytest.raises(DataError, match=f"{victim} is damaged or not the published file, and was not used: expected"):
        load_mnist((), files)


def test_a_file_that_unpacks_to_more_than_the_published_one_is_refused_without_unpacking_it_all(tmp_path):
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(1_000_000)))
    with pytest.raises(DataError, match="expected 10 bytes with sha256 .*, found 11 bytes with"):
        read_verified(tmp_path / "bomb.gz", published("bomb", bytes(10)))


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("gone")])
def test_folder_or_dangling_link_in_place_of_a_file_is_refused_instead_of_downloading(make, cache, serve):
    cache.mkdir(parents=True)
    for file in MNIST_FILES:
        make(cache / file.name)
    server = serve(cache)
    with pytest.raises(DataError, match="train-images-idx3-ubyte cannot be read"):
        load_mnist([server.url])
    assert server.requested == []


def test_cache_that_cannot_be_written_is_named(fake_mnist, serve, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        DataError, match=f"{tmp_path}/file.* cannot be written .*Not a directory.*; set L2O_DATA or XDG"
    ):
        load_mnist([serve(fake_mnist[0]).url], fake_mnist[1])


def test_files_of_other_shapes_are_refused(cache):
    cache.mkdir(parents=True)
    content = idx(np.zeros((3, 28, 28)))
    for file in MNIST_FILES:
        (cache / file.name).write_bytes(content)
    with pytest.raises(DataError, match=r"MNIST: expected shapes \[\(60000, 28, 28\).*found \[\(3, 28, 28\)"):
        load_mnist((), [published(file.name, content) for file in MNIST_FILES])


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 2)])
def test_idx_round_trip(shape):
    array = np.random.RandomState(0).randint(0, 256, shape)
    assert np.array_equal(parse_idx(idx(array), "file"), array)


@pytest.mark.parametrize("content", [b"", b"\x00\x00", b"\x00\x00\x0d\x01" + bytes(8), b"PK\x03\x04" + bytes(8)])
def test_idx_with_another_magic_number_is_refused(content):
    with pytest.raises(DataError, match="file: an IDX file of unsigned bytes starts with 00 00 08"):
        parse_idx(content, "file")


@pytest.mark.parametrize("n_bytes", [9, 27, 29])
def test_idx_whose_values_do_not_fill_its_shape_is_refused(n_bytes):
    content = (idx(np.zeros((2, 8))) + b"\0")[:n_bytes]  # the header has 12 bytes, the whole file 28
    with pytest.raises(DataError, match=f"in all; found {n_bytes} bytes"):
        parse_idx(content, "file")


def test_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="dataset must be one of digits, mnist, cifar10, got 'imagenet'"):
        load_dataset("imagenet")


def test_cifar10_without_l2o_data_says_what_to_set():
    with pytest.raises(DataError, match="L2O_DATA, which is not set; set it to a folder with cifar10/"):
        load_dataset("cifar10")


def test_cifar10_missing_from_l2o_data_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"{tmp_path}/cifar10, but train_first25000_jpegq75.npz is not there"):
        load_dataset("cifar10")


def test_damaged_cifar10_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cifar10").mkdir()
    for file in CIFAR10_FILES:
        (tmp_path / "cifar10" / file.name).write_bytes(b"PK damaged")
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    with pytest.raises(DataError, match="train_first25000_jpegq75.npz is damaged.*found 10 bytes"):
        load_dataset("cifar10")


def test_minibatches_come_only_from_their_split():
    splits = {
        split: Samples(torch.arange(100 * i, 100 * i + 50), torch.full((50,), i)) for i, split in enumerate(SPLITS)
    }
    minibatches, generator = Minibatches(splits), torch.Generator().manual_seed(0)
    for i, split in enumerate(SPLITS):
        batch = minibatches.draw(split, 3, 400, generator)
        assert batch["inputs"].shape == (3, 400)
        assert torch.equal(batch["inputs"].unique(), splits[split].inputs)  # with 1,200 draws, each of the 50
        assert torch.equal(batch["targets"], torch.full((3, 400), i))
        assert not torch.equal(batch["inputs"][0], batch["inputs"][1])


def test_same_seed_gives_the_same_minibatch():
    minibatches = Minibatches(load_dataset("digits"), 16.0)
    first, again = (minibatches.draw("train", 2, 5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first["inputs"], again["inputs"]) and torch.equal(first["targets"], again["targets"])


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of train, inner_valid, outer_valid, test, got 'valid'"):
        Minibatches(load_dataset("digits")).draw("valid", 1, 1, torch.Generator())


@needs_mnist
def test_real_mnist_is_found_without_network(monkeypatch):
    monkeypatch.setenv("L2O_DATA", REAL)
    splits = load_mnist(base_urls=())
    check_splits(splits, "mnist")
    # the first test images show 7, 2, 1, 0, 4; class sizes as published
    assert splits["test"].targets[:5].tolist() == [7, 2, 1, 0, 4]
    assert splits["test"].targets.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    training = torch.cat([splits[split].targets for split in SPLITS[:3]])
    assert training.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    pixels = torch.cat([splits[split].inputs for split in SPLITS[:3]]).double()
    assert abs(pixels.mean() / 255 - 0.1307) < 5e-5  # the figure everyone normalises with


@needs_mnist
def test_real_mnist_files_under_each_others_names_are_refused(tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    for file, other in zip(MNIST_FILES, (*MNIST_FILES[2:], *MNIST_FILES[:2]), strict=True):
        shutil.copyfile(Path(REAL, "mnist", f"{other.name}.gz"), tmp_path / "mnist" / f"{file.name}.gz")
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz is damaged or not .*found 7840016 bytes"):
        load_dataset("mnist")


@needs_cifar10
def test_real_cifar10_has_its_shapes_and_balanced_test_classes(monkeypatch):
    monkeypatch.setenv("L2O_DATA", REAL)
    splits = load_dataset("cifar10")
    check_splits(splits, "cifar10")
    assert splits["test"].targets.bincount().tolist() == [1000] * 10
    training = torch.cat([splits[split].targets for split in SPLITS[:3]])
    assert training.bincount().sum() == 25_000 and training.bincount().min() > 2_350


@needs_cifar10
def test_decoded_cifar10_resembles_the_lossless_images(monkeypatch):
    monkeypatch.setenv("L2O_DATA", REAL)
    with np.load(io.BytesIO(Path(REAL, "cifar10", "train_first4000_lossless.npz").read_bytes())) as archive:
        lossless, labels = archive["images"], archive["labels"]
    splits = load_dataset("cifar10")
    order = np.concatenate(np.split(np.random.RandomState(0).permutation(25_000), [20_000, 22_500]))
    images = torch.cat([splits[split].inputs for split in SPLITS[:3]])
    targets = torch.cat([splits[split].targets for split in SPLITS[:3]])
    place = torch.from_numpy(np.argsort(order)[:4000])
    assert torch.equal(targets[place], torch.from_numpy(labels.astype(np.int64)))
    error = images[place].double() - torch.from_numpy(lossless.transpose(0, 3, 1, 2).copy()).double()
    psnr = 10 * torch.log10(255**2 / error.square().mean((1, 2, 3)))
    assert psnr.median() > 25  # SOURCES.md measured 30.5 dB
