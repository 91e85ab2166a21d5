"""Every Python block of the README runs as it stands, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import l2o

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(code: str, folder: Path) -> str:
    command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=300, cwd=folder, env=environment
    ).stdout


@pytest.mark.skipif("lstm-digits" not in l2o.available(), reason="lstm-digits is not shipped yet")
def test_the_first_example_trains_a_model(tmp_path):
    assert float(run(BLOCKS[0], tmp_path).split()[-1]) < 1.0  # ln 10 = 2.3 before training


def test_the_second_example_learns_a_rule_that_trains_its_model(tmp_path):
    assert len(BLOCKS) == 5
    assert float(run(BLOCKS[1], tmp_path).split()[-1]) < 0.1  # about 3 before training
    assert (tmp_path / "runs/linear/checkpoints/best").is_dir()


def test_the_third_example_certifies_a_minimum_and_finds_the_codes(tmp_path):
    gap, error = (float(line.split()[-1]) for line in run(BLOCKS[2], tmp_path).splitlines())
    assert 0 <= gap <= 1e-6 and error < 1e-2


def test_the_fourth_example_learns_the_weight_of_least_validation_loss(tmp_path):
    first, second = run(BLOCKS[3], tmp_path).splitlines()
    before, after = float(second.split()[2]), float(second.split()[-1])
    assert after < 0.95 * before and 0 < float(first.split()[5].rstrip(",")) < 1


def test_the_fifth_example_learns_weight_decays_that_lower_the_test_loss(tmp_path):
    words = run(BLOCKS[4], tmp_path).split()
    before, after = float(words[2]), float(words[8])
    assert after < 0.85 * before


def test_import_l2o_loads_every_name_that_the_readme_has(tmp_path):
    names = sorted(set(re.findall(r"\bl2o((?:\.[A-Za-z_]\w*)+)", "".join(re.findall(r"`[^`\n]+`", README)))))
    assert ".gradient_flow" in names and len(names) > 10
    reached = "\n".join(f"l2o{name}" for name in names)
    assert run(f"import l2o\n{reached}\nprint(l2o.__all__)", tmp_path).startswith("['CG'")


def test_the_commands_that_the_readme_names_exist():
    commands = set(re.findall(r"^    l2o (\w+)", README, re.MULTILINE))
    help_text = subprocess.run(
        [sys.executable, "-m", "meta_train.cli", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert commands and all(command in help_text for command in commands)
