"""`l2o import | push | card`: what they write, and one line for what goes wrong."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from l2o import load_rule, save_rule
from l2o.checkpoint import read_card
from l2o.rules import SGD
from l2o.tensorflow_weights import load_tensorflow_lstm

PUBLISHED = Path(os.environ.get("L2O_DATA", "/nonexistent")) / "checkpoints"


def sonnet_arrays():
    generator = np.random.default_rng(0)
    shapes = {"lstm_1/w_gates": (22, 80), "lstm_1/b_gates": (80,), "lstm_2/w_gates": (40, 80), "lstm_2/b_gates": (80,)}
    shapes |= {"linear/w": (20, 1), "linear/b": (1,)}
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def same(left, right):
    return all(torch.equal(value, right.state_dict()[name]) for name, value in left.state_dict().items())


# ---------------------------------------------------------------- import


def test_import_writes_a_checkpoint_with_the_weights_and_where_they_are_from(l2o, tmp_path):
    np.savez(tmp_path / "weights.npz", **sonnet_arrays())
    status, output, errors = l2o("import", "dm", "weights.npz", "--out", "zoo/dm")
    assert (status, errors) == (0, "") and 'l2o.load("zoo/dm", params)' in output
    assert same(load_rule("zoo/dm"), load_tensorflow_lstm("weights.npz"))
    assert read_card(tmp_path / "zoo/dm")["training"]["imported_from"] == "weights.npz"
    assert "`l2o import dm weights.npz --out zoo/dm`" in (tmp_path / "zoo/dm/README.md").read_text()


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published weights are not in $L2O_DATA")
@pytest.mark.parametrize("name", ["dm", "dm_aug", "dm_cl", "dm_il", "dm_cl_il"])
def test_published_weights_are_imported(name, l2o):
    assert l2o("import", "dm", PUBLISHED / f"{name}.npz", "--out", name)[0] == 0
    assert same(load_rule(name), load_tensorflow_lstm(PUBLISHED / f"{name}.npz"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"linear/b": None}, "(expected, found) shapes: {'linear/b': ((1,), None)}"),
        ({"input_projection/w": np.zeros((2, 20))}, "RNNprop weights are another rule"),
        ({"linear/b": np.zeros(1, np.int64)}, "expected floating-point numbers, found {'linear/b': 'int64'}"),
        ({"linear/b": np.zeros(1, np.complex64)}, "found {'linear/b': 'complex64'}"),
        ({"linear/b": np.array([np.nan])}, "['linear/b'] has numbers that are not finite in float32"),
        ({"linear/b": np.array([1e60])}, "['linear/b'] has numbers that are not finite in float32"),
    ],
)
def test_import_refuses_nonsense_in_one_line_and_writes_nothing(change, words, l2o, tmp_path):
    arrays = {name: value for name, value in (sonnet_arrays() | change).items() if value is not None}
    np.savez(tmp_path / "weights.npz", **arrays)
    status, output, errors = l2o("import", "dm", "weights.npz", "--out", "dm")
    (line,) = errors.splitlines()
    assert (status, output) == (2, "") and words in line
    assert line.startswith("l2o: weights.npz does not hold the weights of a TensorFlow coordinate-wise LSTM: ")
    assert not (tmp_path / "dm").exists()


def test_import_reads_other_byte_orders_and_precisions(l2o, tmp_path):
    arrays = sonnet_arrays()
    np.savez(tmp_path / "weights.npz", **{name: array.astype(">f8") for name, array in arrays.items()})
    np.savez(tmp_path / "plain.npz", **arrays)
    assert l2o("import", "dm", "weights.npz", "--out", "dm")[0] == 0
    assert same(load_rule("dm"), load_tensorflow_lstm("plain.npz"))


def test_import_leaves_what_exists_alone(l2o, tmp_path):
    np.savez(tmp_path / "weights.npz", **sonnet_arrays())
    (tmp_path / "run").mkdir()
    status, _, errors = l2o("import", "dm", "weights.npz", "--out", "run")
    assert (status, errors) == (2, "l2o: run exists already; choose another --out\n")


def test_import_knows_its_formats(l2o):
    status, _, errors = l2o("import", "keras", "weights.npz", "--out", "dm")
    assert status == 2 and "invalid choice 'keras'" in errors and "'dm'" in errors


# ---------------------------------------------------------------- card and push


def test_card_is_written_for_a_run(l2o, tmp_path):
    save_rule(SGD(), tmp_path / "run/checkpoints/best")
    status, output, _ = l2o("card", "run", "--note", "One.", "--note", "Two.")
    assert (status, output) == (0, "run/checkpoints/best/README.md\n")
    assert "- One.\n- Two." in (tmp_path / output.strip()).read_text()


def test_card_of_shipped_rules_asks_for_the_results_rather_than_to_forget_them(l2o):
    status, _, errors = l2o("card")
    assert status == 2 and "['results'] does not exist; name --results" in errors


def test_card_of_what_is_no_checkpoint_is_one_line(l2o):
    status, _, errors = l2o("card", "nothing")
    assert status == 2 and errors.startswith("l2o: no checkpoint at nothing: ")


@pytest.mark.parametrize("private", [False, True])
def test_push_uploads_checkpoint_and_card(private, l2o, monkeypatch, tmp_path):
    uploads = []

    def upload(repository, files, private, message):
        uploads.append((repository, files, private))
        return f"http://hub/{repository}"

    monkeypatch.setattr("l2o.interop.huggingface.upload", upload)
    best = save_rule(SGD(), tmp_path / "run/checkpoints/best")
    status, output, _ = l2o("push", "run", "hf://ann/mine", *(["--private"] if private else []))
    assert (status, output) == (0, 'http://hub/ann/mine   (l2o.load("hf://ann/mine", params))\n')
    ((repository, files, asked),) = uploads
    assert (repository, asked) == ("ann/mine", private)
    assert 'l2o.load("hf://ann/mine", model.parameters())' in files.pop("README.md").decode()
    assert files == {path.name: path.read_bytes() for path in best.iterdir()}


def test_push_that_cannot_be_is_one_line(l2o, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for arguments, words in (
        (("lstm-digits", "ann/mine"), "pip install 'l2o[hub]'"),
        (("lstm-digits", "mine"), "mine is no address on the Hub"),
        (("nothing", "ann/mine"), "no checkpoint at nothing"),
    ):
        status, output, errors = l2o("push", *arguments)
        assert (status, output, errors.count("\n")) == (2, "", 1) and words in errors
