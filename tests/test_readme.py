"""Every Python block of the README runs as it stands, in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import l2o

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.mark.skipif("lstm-digits" not in l2o.available(), reason="lstm-digits is not shipped yet")
def test_the_first_example_trains_a_model():
    assert float(run(BLOCKS[0]).split()[-1]) < 1.0  # ln 10 = 2.3 before training


def test_every_other_example_runs_and_prints():
    assert len(BLOCKS) > 1
    for block in BLOCKS[1:]:
        assert run(block).strip()


def test_the_commands_that_the_readme_names_exist():
    commands = set(re.findall(r"^    l2o (\w+)", README, re.MULTILINE))
    help_text = subprocess.run(
        [sys.executable, "-m", "meta_train.cli", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert commands and all(command in help_text for command in commands)
