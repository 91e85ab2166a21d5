"""Checkpoints from and to the Hub, by huggingface_hub itself against a server on loopback, in processes of their own.

Processes, because huggingface_hub reads its environment variables once, when it is imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Server

from l2o import CheckpointError, load_rule, save_rule
from l2o.hub import FILES, fetch, push
from l2o.rules import SGD, SGDConfig

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install 'l2o[hub]'")

REPOSITORY = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens
PREAMBLE = """
import sys
import l2o
from l2o.hub import push

def attempt(call, *arguments, **options):
    try:
        return call(*arguments, **options)
    except l2o.CheckpointError as error:
        return f"CheckpointError: {error}"

def lr_of(source):
    rule = attempt(l2o.load_rule, source)
    return rule if isinstance(rule, str) else f"lr {rule.log_lr.exp().item():.3f}"
"""


@pytest.fixture
def hub():
    with Server() as hub:
        yield hub


@pytest.fixture
def python(tmp_path):
    """Run code in a process whose Hub is the given one, with a cache in `tmp_path`; return what it printed, by line."""

    def run(code: str, endpoint: str, **variables: str) -> list[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment = {"PYTHONPATH": str(REPOSITORY), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint}
        result = subprocess.run(
            [sys.executable, "-c", PREAMBLE + code],
            env=inherited | environment | variables, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    return run


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def checkpoint(directory: Path, lr: float) -> dict[str, bytes]:
    return files_of(save_rule(SGD(SGDConfig(lr)), directory / f"sgd-{lr}"))


def print_each(*addresses: str) -> str:
    return "".join(f"print(lr_of({address!r}))\n" for address in addresses)


# ---------------------------------------------------------------- downloading


def test_an_address_is_downloaded_once_and_then_taken_from_the_cache(hub, python, tmp_path):
    surplus = {"training_args.bin": b"a pickle", "model.safetensors": b"x" * 1000}
    hub.put("ann/sgd", checkpoint(tmp_path, 0.25) | surplus)
    twice = 'print(l2o.load("hf://ann/sgd", [l2o.load_rule("hf://ann/sgd").log_lr], lr=0.5).param_groups[0]["lr"])\n'
    assert python(print_each("hf://ann/sgd") + twice, hub.endpoint) == ["lr 0.250", "0.5"]
    fetched = [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
    assert sorted(fetched) == sorted(set(fetched)) and {path.split("/")[-1] for path in fetched} == set(FILES)
    cached = {path.name for path in (tmp_path / "hf/hub").rglob("*") if path.parent.parent.name == "snapshots"}
    assert cached == set(FILES)


def test_revisions_are_branches_tags_or_commits_and_both_files_are_of_the_same_one(hub, python, tmp_path):
    first = hub.put("ann/sgd", checkpoint(tmp_path, 0.25))
    hub.put("ann/sgd", checkpoint(tmp_path, 0.5))
    hub.put("ann/sgd", checkpoint(tmp_path, 0.75), revision="v1.0")
    addresses = ("hf://ann/sgd", f"hf://ann/sgd@{first}", "hf://ann/sgd@v1.0", "hf:/ann/sgd")  # the last: a Path
    assert python(print_each(*addresses), hub.endpoint) == ["lr 0.500", "lr 0.250", "lr 0.750", "lr 0.500"]
    hub.put("ann/sgd", checkpoint(tmp_path, 0.125))
    assert python(print_each("hf://ann/sgd"), hub.endpoint) == ["lr 0.125"]  # the cache does not hide a new commit


def test_without_network_the_cache_serves_and_the_rest_is_one_line(hub, python, tmp_path):
    hub.put("ann/sgd", checkpoint(tmp_path, 0.25))
    hub.put("ann/other", checkpoint(tmp_path, 0.5))
    python(print_each("hf://ann/sgd"), hub.endpoint)
    code = print_each("hf://ann/sgd", "hf://ann/other", "hf://ann/sgd@v2")
    code += 'print(attempt(push, "lstm-digits", "ann/mine", "card"))'
    for endpoint, variables, words in (
        (hub.endpoint, {"HF_HUB_OFFLINE": "1"}, ["HF_HUB_OFFLINE is set"]),
        (NOWHERE, {}, [f"{NOWHERE} cannot be used, ConnectError: ", "refused"]),
    ):
        before = list(hub.requests)
        cached, *others = python(code, endpoint, HF_TOKEN="hf_writer", **variables)
        assert cached == "lr 0.250" and hub.requests == before
        for line, address in zip(others, ("hf://ann/other", "hf://ann/sgd@v2", "hf://ann/mine"), strict=True):
            assert line.startswith(f"CheckpointError: {address}") and all(word in line for word in words)
            assert ("it is not in the cache" in line) == (address != "hf://ann/mine")


def test_every_refusal_of_the_hub_is_one_line_that_says_what_to_do(hub, python, tmp_path):
    hub.put("ann/sgd", checkpoint(tmp_path, 0.25))
    hub.put("ann/resnet", {"model.safetensors": b"other"})
    hub.put("ann/half", {"rule.json": checkpoint(tmp_path, 0.25)["rule.json"]})
    hub.answers = {"ann/gated": (403, "GatedRepo"), "ann/closed": (403, ""), "ann/broken": (500, "")}
    expected = {
        "hf://ann/unknown": "knows no such repository, or shows it only to others; check it, or: hf auth login",
        "hf://ann/sgd@v9": "the repository has no revision v9",
        "hf://ann/resnet": "has no rule.json and rule.safetensors, so it is no checkpoint of l2o",
        "hf://ann/half": "has no rule.json and rule.safetensors, so it is no checkpoint of l2o",
        "hf://ann/gated": f"is gated: ask for access on its page at {hub.endpoint}, then log in: hf auth login",
        "hf://ann/closed": "does not allow this",
        "hf://ann/broken": "cannot be used, HfHubHTTPError: ",
        "hf://ann/a--b": "cannot be used, HFValidationError: ",
    }
    lines = python(print_each(*expected), hub.endpoint)
    for line, (address, words) in zip(lines, expected.items(), strict=True):
        assert line.startswith(f"CheckpointError: {address}") and words in line


def test_what_is_downloaded_is_checked_like_any_other_checkpoint(hub, python, tmp_path):
    files = checkpoint(tmp_path, 0.25)
    hub.put("ann/cut", files | {"rule.safetensors": files["rule.safetensors"][:-2]})
    hub.put("ann/pickle", files | {"rule.safetensors": b"\x80\x04."})
    hub.put("ann/text", files | {"rule.json": b"<html>"})
    cut, pickled, text = python(print_each("hf://ann/cut", "hf://ann/pickle", "hf://ann/text"), hub.endpoint)
    assert "not a safetensors file" in cut and "not a safetensors file" in pickled and "cannot be read as JSON" in text


@pytest.mark.parametrize("address", ["hf://", "hf://sgd", "hf://a/b/c", "hf://a/b@", "hf://a b/c", "hf://../x@y z"])
def test_what_is_no_address_is_refused_before_anything_is_asked(address):
    with pytest.raises(CheckpointError, match="is no address on the Hub; expected hf://owner/name"):
        fetch(address)


def test_without_huggingface_hub_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: load_rule("hf://ann/sgd"), lambda: push("lstm-digits", "ann/sgd", "")):
        with pytest.raises(CheckpointError, match=r"hf:// addresses need the extra hub: pip install 'l2o\[hub\]'"):
            call()


# ---------------------------------------------------------------- pushing


def test_what_is_pushed_is_what_is_loaded(hub, python, tmp_path):
    run = tmp_path / "run"
    save_rule(SGD(SGDConfig(0.25)), run / "checkpoints/best", results={"sum_loss": 3.0})
    code = f'print(push({str(run)!r}, "ann/mine", "# A card", private=True))\n' + print_each("hf://ann/mine")
    url, lr = python(code, hub.endpoint, HF_TOKEN="hf_writer")
    assert (url, lr) == (f"{hub.endpoint}/ann/mine", "lr 0.250")
    assert hub.repositories["ann/mine"]["main"] == files_of(run / "checkpoints/best") | {"README.md": b"# A card"}
    assert hub.private == ["ann/mine"]
    code = 'push("lstm-digits", "hf://ann/mine", "# Another")\nprint(l2o.load_rule("hf://ann/mine").config.layers)'
    assert python(code, hub.endpoint, HF_TOKEN="hf_writer") == ["2"]  # the repository was there


def test_refused_uploads_are_one_line(hub, python):
    code = """
import os
print(attempt(push, "lstm-digits", "ann/mine", "card"))
os.environ["HF_TOKEN"] = "hf_reader"
print(attempt(push, "lstm-digits", "ann/mine", "card"))
"""
    nobody, reader = python(code, hub.endpoint)
    assert nobody.startswith("CheckpointError: hf://ann/mine: ") and nobody.endswith("or: hf auth login")
    assert "a token with the right to write is needed" in reader
    assert hub.repositories == {}


def test_nothing_is_uploaded_that_does_not_load_or_to_what_is_no_repository(tmp_path):
    directory = save_rule(SGD(), tmp_path / "sgd")
    card = json.loads((directory / "rule.json").read_text())
    (directory / "rule.json").write_text(json.dumps(card | {"rule": "newton"}))
    with pytest.raises(CheckpointError, match="unknown rule 'newton'"):
        push(directory, "ann/sgd", "")
    with pytest.raises(CheckpointError, match="not to a revision"):
        push("lstm-digits", "ann/sgd@v1", "")
    with pytest.raises(CheckpointError, match="is no address on the Hub"):
        push("lstm-digits", "sgd", "")
