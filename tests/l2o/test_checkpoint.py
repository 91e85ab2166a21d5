"""Saving and loading rules: bit for bit, and one clear error for everything that is not a checkpoint."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import l2o
from l2o import CheckpointError, load, load_rule, save_rule
from l2o.checkpoint import FORMAT_VERSION, build_rule, find, read_card, rule_name
from l2o.rule import Observation
from l2o.rules import SGD, Adam, AdamConfig, CoordinatewiseLSTM, LSTMConfig, SGDConfig


def edit_card(directory, **changes):
    """Change fields of rule.json; None removes one."""
    path = directory / "rule.json"
    card = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in card.items() if value is not None}))


def edit_weights(directory, **changes):
    path = directory / "rule.safetensors"
    weights = load_file(path) | changes
    save_file({name: value for name, value in weights.items() if value is not None}, path)


def lr_of(source):
    return load_rule(source).log_lr.exp().item()


@pytest.fixture
def saved(tmp_path, generator):
    """A small LSTM's checkpoint."""
    return save_rule(CoordinatewiseLSTM(LSTMConfig(hidden_size=3), generator), tmp_path / "checkpoint")


# ---------------------------------------------------------------- round trip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_bit_for_bit(make_rule, dtype, tmp_path, generator, request):
    if dtype == torch.float64:
        request.getfixturevalue("float64")
    rule = make_rule()
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    directory = save_rule(rule, tmp_path / "deep" / "checkpoint")
    loaded = load_rule(directory)
    assert type(loaded) is type(rule)
    assert loaded.config == rule.config
    assert loaded.state_dict().keys() == rule.state_dict().keys()
    for name, tensor in rule.state_dict().items():
        assert loaded.state_dict()[name].dtype == dtype
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_loaded_rule_makes_the_same_updates(make_rule, tmp_path, generator):
    rule, grads = make_rule(), {"x": torch.randn(2, 5, generator=generator)}
    loaded = load_rule(save_rule(rule, tmp_path / "checkpoint"))
    observation = Observation({"x": torch.zeros(2, 5)}, grads, None, torch.tensor(0))
    moved = [r(observation, r.init_state(grads))[0]["x"] for r in (rule, loaded)]
    assert torch.equal(*moved)


def test_checkpoint_is_json_and_safetensors_only(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["rule.json", "rule.safetensors"]
    card = json.loads((saved / "rule.json").read_text())
    assert (card["format_version"], card["rule"], card["config"]["hidden_size"]) == (FORMAT_VERSION, "lstm", 3)


def test_card_keeps_the_facts_it_is_given(tmp_path):
    save_rule(SGD(), tmp_path / "checkpoint", training={"seed": 3}, results={"sum_loss": 1.5})
    card = read_card(tmp_path / "checkpoint")
    assert (card["training"], card["results"]) == ({"seed": 3}, {"sum_loss": 1.5})


def test_load_returns_an_optimizer_with_the_rule(saved):
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = load(saved, [param], lr=0.5)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert torch.equal(optimizer.rule.output_weight, load_rule(saved).output_weight)


def test_path_may_be_a_string(saved):
    assert torch.equal(load_rule(str(saved)).output_weight, load_rule(saved).output_weight)


@pytest.mark.parametrize("name", l2o.available())
def test_shipped_checkpoint_loads_and_tells_how_it_was_made(name):
    rule, card = load_rule(name), read_card(find(name))
    assert all(parameter.isfinite().all() for parameter in rule.parameters())
    assert {"training", "results"} <= card.keys()


def test_rule_name_is_the_name_in_rules(rule):
    assert type(build_rule(rule_name(rule), vars(rule.config))) is type(rule)


def test_rule_without_a_name_is_refused_and_the_old_checkpoint_stays(normalized_sgd, saved):
    before = (saved / "rule.safetensors").read_bytes()
    with pytest.raises(TypeError, match="NormalizedSGD has no name in l2o.rules.RULES"):
        save_rule(normalized_sgd, saved)
    assert (saved / "rule.safetensors").read_bytes() == before


# ---------------------------------------------------------------- replacing and interruptions


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path):
    for lr in (0.25, 0.5):
        save_rule(SGD(SGDConfig(lr)), tmp_path / "checkpoint")
    assert lr_of(tmp_path / "checkpoint") == pytest.approx(0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_checkpoint_is_replaced_only_when_the_new_one_is_complete(tmp_path):
    save_rule(SGD(SGDConfig(0.25)), tmp_path / "checkpoint")
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_rule(SGD(SGDConfig(0.5)), tmp_path / "checkpoint", results=torch.zeros(()))
    assert lr_of(tmp_path / "checkpoint") == pytest.approx(0.25)


def interrupted(tmp_path, moment):
    """Leave the folder as a kill at this moment of the second save leaves it; lr 0.25 is the old, 0.5 the new one."""
    current, fresh, old = (tmp_path / f"checkpoint{suffix}" for suffix in ("", ".new", ".old"))
    save_rule(SGD(SGDConfig(0.25)), current)
    save_rule(SGD(SGDConfig(0.5)), tmp_path / "other")
    (tmp_path / "other").rename(fresh)
    if moment == "writing":
        (fresh / "rule.json").unlink()
    if moment in ("between renames", "after renames"):
        current.rename(old)
    if moment == "after renames":
        fresh.rename(current)
    return current


MOMENTS = {"writing": 0.25, "written": 0.25, "between renames": 0.25, "after renames": 0.5}


@pytest.mark.parametrize("moment, lr", MOMENTS.items())
def test_interrupted_save_still_loads_and_can_be_repeated(tmp_path, moment, lr):
    checkpoint = interrupted(tmp_path, moment)
    assert lr_of(checkpoint) == pytest.approx(lr)
    save_rule(SGD(SGDConfig(0.75)), checkpoint)
    assert lr_of(checkpoint) == pytest.approx(0.75)
    assert not checkpoint.with_name("checkpoint.new").exists()


def test_failed_save_after_an_interrupted_one_keeps_the_only_complete_checkpoint(tmp_path):
    checkpoint = interrupted(tmp_path, "between renames")
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_rule(SGD(SGDConfig(0.75)), checkpoint, results=torch.zeros(()))
    assert lr_of(checkpoint) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "present, lr", [(("best", "last"), 1.0), (("last",), 3.0), (("best.old", "last"), 2.0), (("last.old",), 4.0)]
)
def test_run_directory_gives_its_best_checkpoint_else_its_last(tmp_path, present, lr):
    values = {"best": 1.0, "best.old": 2.0, "last": 3.0, "last.old": 4.0}
    for name in present:
        save_rule(SGD(SGDConfig(values[name])), tmp_path / "run" / "checkpoints" / name)
    assert lr_of(tmp_path / "run") == pytest.approx(lr)


# ---------------------------------------------------------------- what is not a checkpoint


def test_missing_directory_names_what_there_is(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: it is not a directory, and the shipped names are"):
        load_rule(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="has no rule.json and no checkpoints/best"):
        find(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint at lstm-unknown"):
        load("lstm-unknown", [torch.nn.Parameter(torch.zeros(1))])


def test_a_name_too_long_for_a_path_is_no_checkpoint_either():
    message = (
        r"no checkpoint at (mine){25}… \(5,000 characters\): it cannot be looked up \(File name too long\), and the"
    )
    with pytest.raises(CheckpointError, match=message):
        load("mine" * 1250, [torch.nn.Parameter(torch.zeros(1))])


@pytest.mark.parametrize("content", ["", "{", "rule: lstm", '{"rule": "lstm"', "\x00\x01"])
def test_card_that_is_not_json(saved, content):
    (saved / "rule.json").write_text(content)
    with pytest.raises(CheckpointError, match="rule.json cannot be read as JSON"):
        load_rule(saved)


def test_card_that_is_not_text(saved):
    (saved / "rule.json").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(CheckpointError, match="rule.json cannot be read as JSON"):
        read_card(saved)


@pytest.mark.parametrize(
    "card", [[], 3, "lstm", {}, {"rule": "lstm"}, {"rule": 1, "config": {}}, {"rule": "sgd", "config": []}]
)
def test_incomplete_card(saved, card):
    (saved / "rule.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match='lacks "rule" .* or "config"'):
        load_rule(saved)


@pytest.mark.parametrize("version", [None, 0, FORMAT_VERSION + 1, "one"])
def test_other_format_version(saved, version):
    edit_card(saved, format_version=version)
    with pytest.raises(CheckpointError, match=f"format_version {version}, this version of l2o reads {FORMAT_VERSION}"):
        load_rule(saved)


def test_unknown_rule(saved):
    edit_card(saved, rule="newton")
    with pytest.raises(CheckpointError, match="rule.json: unknown rule 'newton'; this version of l2o has .*'lstm'"):
        load_rule(saved)


def test_unknown_option(saved):
    edit_card(saved, config={"hidden_size": 3, "width": 4})
    with pytest.raises(CheckpointError, match=r"unknown options \['width'\] of rule 'lstm'; it has .*'hidden_size'"):
        load_rule(saved)


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": 0},
        {"hidden_size": "3"},
        {"hidden_size": 2.5},
        {"hidden_size": None},
        {"hidden_size": 10**6},  # 16 TB of weights
        {"p": -1.0},
        {"layers": []},
    ],
)
def test_option_out_of_range(config):
    with pytest.raises(CheckpointError, match="config: rule 'lstm' refuses its options"):
        build_rule("lstm", config)


def test_shapes_that_do_not_fit_the_config(saved):
    edit_card(saved, config={"hidden_size": 5})
    with pytest.raises(CheckpointError, match=r"does not fit .*'output_weight': \(\(1, 5\), \(1, 3\)\)"):
        load_rule(saved)


@pytest.mark.parametrize("name, value", [("output_bias", None), ("extra", torch.zeros(2))])
def test_missing_and_extra_weights(saved, name, value):
    edit_weights(saved, **{name: value})
    with pytest.raises(CheckpointError, match=f"rule.safetensors does not fit the options .*'{name}'"):
        load_rule(saved)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"scale": "0.1"}, "scale must be float, got '0.1'"),
        ({"scale": True}, "scale must be float, got True"),
        ({"layers": 2.0}, "layers must be int, got 2.0"),
        ({"p": "10"}, r"p must be float \| None, got '10'"),
        ({"p": [10.0]}, r"p must be float \| None, got \[10.0\]"),
    ],
)
def test_option_of_another_type(saved, config, words):
    edit_card(saved, config={"hidden_size": 3} | config)
    with pytest.raises(CheckpointError, match=f"rule 'lstm' refuses its options .*: {words}"):
        load_rule(saved)


def test_text_is_no_truth_and_numbers_without_a_point_are_numbers():
    with pytest.raises(CheckpointError, match="nesterov must be bool, got 'false'"):
        build_rule("momentum", {"nesterov": "false"})
    assert build_rule("lstm", {"p": 10, "scale": 1}).config == LSTMConfig(p=10, scale=1)


def test_options_that_ask_for_more_memory_than_there_is_are_found_out_before_it_is_taken(saved):
    edit_card(saved, config={"hidden_size": 10**5})  # 480 GB
    with pytest.raises(CheckpointError, match=r"does not fit .*'output_weight': \(\(1, 100000\), \(1, 3\)\)"):
        load_rule(saved)


@pytest.mark.parametrize(
    "layers, words", [(10**6, "it would have more layers or parts"), (10**9, "layers must be at most")]
)
def test_a_card_that_asks_for_millions_of_layers_is_refused_before_they_are_built(saved, layers, words):
    edit_card(saved, config={"layers": layers})
    with pytest.raises(CheckpointError, match=f"refuses its options .*: {words}"):
        load_rule(saved)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_another_kind_of_number(saved, dtype):
    edit_weights(saved, output_bias=torch.ones(1).to(dtype))
    with pytest.raises(
        CheckpointError, match=r"rule.safetensors has weights of dtype \{'output_bias': '\w+'\}; expected"
    ):
        load_rule(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_load_in_the_default_one(saved, dtype):
    edit_weights(saved, output_bias=torch.tensor([0.5], dtype=dtype))
    assert torch.equal(load_rule(saved).output_bias, torch.tensor([0.5]))


def test_weights_too_large_for_the_default_precision_are_not_finite(saved):
    edit_weights(saved, output_bias=torch.tensor([1e300], dtype=torch.float64))
    with pytest.raises(CheckpointError, match="weights that are not finite"):
        load_rule(saved)


@pytest.mark.parametrize("content", ["[" * 100_000, " " * (10**7 + 1), '{"format_version": ' + "9" * 5000 + "}"])
def test_card_that_would_choke_the_reader(saved, content):
    (saved / "rule.json").write_text(content)
    with pytest.raises(CheckpointError, match="rule.json cannot be read as JSON"):
        load_rule(saved)


def test_renamed_files_are_missed_by_name(saved):
    (saved / "rule.safetensors").rename(saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="rule.safetensors is missing"):
        load_rule(saved)
    (saved / "rule.json").rename(saved / "config.json")
    with pytest.raises(CheckpointError, match="has no rule.json"):
        load_rule(saved)


def test_header_that_lies_about_its_length(saved):
    path = saved / "rule.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_rule(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(saved, value):
    edit_weights(saved, output_bias=torch.tensor([value]))
    with pytest.raises(CheckpointError, match="weights that are not finite"):
        load_rule(saved)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(saved, keep):
    path = saved / "rule.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="rule.safetensors is missing, truncated or not a safetensors file"):
        load_rule(saved)


def test_missing_weights(saved):
    (saved / "rule.safetensors").unlink()
    with pytest.raises(CheckpointError, match="rule.safetensors is missing"):
        load_rule(saved)


def test_weights_that_are_a_directory(saved):
    (saved / "rule.safetensors").unlink()
    (saved / "rule.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="rule.safetensors is missing, truncated or not"):
        load_rule(saved)


class Exploit:
    """Unpickling it creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_pickle_in_place_of_the_weights_is_not_executed(saved, tmp_path):
    marker = tmp_path / "executed"
    for write in (
        lambda path: path.write_bytes(pickle.dumps(Exploit(marker))),
        lambda path: torch.save(Exploit(marker), path),
    ):
        write(saved / "rule.safetensors")
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            load_rule(saved)
    shutil.copy(saved / "rule.safetensors", saved / "rule.json")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_rule(saved)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Exploit(marker)))
    assert marker.exists()  # the exploit is a live one


def test_weights_saved_in_float64_load_in_the_default_dtype(tmp_path):
    rule = Adam(AdamConfig(lr=0.25)).double()
    loaded = load_rule(save_rule(rule, tmp_path / "checkpoint"))
    assert loaded.log_lr.dtype == torch.float32
    assert loaded.log_lr.item() == rule.log_lr.float().item()
