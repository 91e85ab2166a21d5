"""Imports point one way, meta_train → tasks → l2o, and the core needs torch, numpy and safetensors alone."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FORBIDDEN = {"l2o": {"tasks", "meta_train"}, "tasks": {"meta_train"}, "meta_train": set()}
RULELESS = {"l2o.proximal", "l2o.constrained", "l2o.problem", "l2o.kernels.least_squares"}
"""All that tasks may import of l2o: a task knows no rule."""
OPTIONAL = (
    *("tyro", "tqdm", "matplotlib", "wandb", "wandb_workspaces", "sklearn", "PIL", "pooch", "requests"),
    *("higher", "learn2learn", "huggingface_hub", "triton"),
)


def imports(path: Path) -> set[str]:
    """Return the full names of all modules that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


def files(layer: str) -> list[Path]:
    return sorted((REPOSITORY / layer).rglob("*.py"))


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_no_layer_imports_one_above_it(layer):
    assert files(layer)
    wrong = {
        (str(path.relative_to(REPOSITORY)), name)
        for path in files(layer)
        for name in imports(path)
        if name.split(".")[0] in FORBIDDEN[layer]
    }
    assert wrong == set()


def test_tasks_know_no_rule():
    used = {name for path in files("tasks") for name in imports(path) if name.split(".")[0] == "l2o"}
    assert {name for name in used if not any(name == m or name.startswith(m + ".") for m in RULELESS)} == set()


def test_the_core_imports_nothing_but_its_three_dependencies():
    allowed = {"l2o", "torch", "numpy", "safetensors", *sys.stdlib_module_names}
    # interop adapts other libraries on demand, and the GPU kernels are imported for CUDA tensors only
    core = [path for path in files("l2o") if "interop" not in path.parts and not path.name.startswith("lstm_triton")]
    assert {name for path in core for name in imports(path) if name.split(".")[0] not in allowed} == set()


# What importlib sees where a package is not installed: no finder knows it.
BLOCKER = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {blocked!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Without, sys.meta_path)
"""


def run_without(blocked: tuple[str, ...], script: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKER.format(blocked=blocked) + script],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip


def test_the_core_trains_a_model_where_nothing_optional_is_installed(tmp_path):
    script = f"""
import torch, l2o
from l2o.rules import RULES
for name, (rule, config) in RULES.items():
    path = l2o.save_rule(rule(config()), {str(tmp_path)!r} + "/" + name)
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = l2o.load(path, [parameter])
    parameter.square().sum().backward()
    optimizer.step()
    assert not torch.equal(parameter, torch.ones(3)), name
print(sorted(module for module in sys.modules if module.split(".")[0] in ("tasks", "meta_train")))
"""
    result = run_without((*OPTIONAL, "tasks", "meta_train"), script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_tasks_need_no_training_extra_until_a_data_set_asks_for_it():
    script = """
import torch
from tasks import MLP, Quadratic
generator = torch.Generator().manual_seed(0)
tasks = Quadratic().sample_tasks(2, generator)
print(sorted(Quadratic().init_params(tasks, 2, generator)), MLP("mnist").layer_sizes)
"""
    result = run_without((*OPTIONAL, "meta_train"), script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "['theta'] (784, 20, 10)"


def test_the_command_line_starts_without_what_only_some_commands_need():
    result = run_without(("wandb", "sklearn", "pooch", "requests"), "from meta_train.cli import main; main(['list'])")
    assert result.returncode == 0, result.stderr
    assert "quadratic" in result.stdout
