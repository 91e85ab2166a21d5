"""Programs that have never heard of l2o run with one line changed: the one that makes the optimizer."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
THEIRS = re.compile(r"torch\.optim\.AdamW\((.*), lr=[\d.]+\)\n")
OURS = {
    "lstm": r'__import__("l2o").load("lstm-digits", \1, lr=0.3)\n',
    "bfloat16 state": r'__import__("l2o").load("lstm-digits", \1, lr=0.3, state_dtype=torch.bfloat16)\n',
}


def changed(name, folder, optimizer):
    """Copy a program, with another optimizer, into a folder."""
    code, changes = THEIRS.subn(OURS[optimizer], (PROGRAMS / name).read_text())
    assert changes == 1
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(code)
    return folder / name


@pytest.mark.parametrize("optimizer", OURS)
def test_a_plain_script_trains_and_resumes_bit_for_bit(optimizer, tmp_path, monkeypatch, capsys):
    def run(folder, epochs):
        program = changed("plain.py", tmp_path / folder, optimizer)
        monkeypatch.setattr(sys, "argv", [str(program), str(program.parent), str(epochs)])
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(program), run_name="__main__")
        return [float(word) for word in capsys.readouterr().out.split()]

    whole = run("once", 4)
    assert run("twice", 2)[0] == 2
    assert run("twice", 4) == whole
    epochs, before, after, _ = whole
    assert epochs == 4 and after < 0.9 * before


@pytest.mark.parametrize("framework", ["lightning", "accelerate"])
def test_a_framework_trains_and_resumes_bit_for_bit(framework, tmp_path):
    if importlib.util.find_spec(framework) is None:  # importing it here would take seconds, and warn
        pytest.skip(f"{framework} is not installed")
    program = changed(f"{framework}_program.py", tmp_path, "bfloat16 state")
    finished = subprocess.run(
        [sys.executable, program, tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    first, last, whole, resumed = (float(word) for word in finished.stdout.splitlines()[-1].split())
    assert last < 0.9 * first
    assert resumed == whole
