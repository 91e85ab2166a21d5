"""Compiling, caching and doing without."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from l2o import kernels
from l2o.kernels import build, reference

SCRIPT = """
import torch
from l2o.kernels import Network, build, reference, sequence_vjp, step
from l2o.kernels.matmul import bmm
assert build.library() is not None
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64):
    draw = lambda *shape: torch.randn(shape, dtype=dtype)
    arguments = (draw(3, 77), draw(3, 77), draw(2, 5, 77), draw(2, 5, 77))
    theta = ([draw(20, 7), draw(20, 10)], [draw(20), draw(20)], draw(1, 5), draw(1))
    network = Network(*theta, p=10.0, log_eps=0.0, scale=0.1, forget_bias=0.0)
    tolerance = dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else dict(rtol=1e-11, atol=1e-11)
    pairs = [module(*arguments, network) for module in (sequence_vjp, reference.sequence_vjp)]
    torch.testing.assert_close(*pairs, **tolerance)
    pairs = [module(arguments[0][0], *arguments[2:], network) for module in (step, reference.step)]
    torch.testing.assert_close(*pairs, **tolerance)
    for b in (draw(2, 77, 53), draw(2, 53, 77).mT):
        a = draw(2, 6, 77)
        torch.testing.assert_close(bmm(a, b), a @ b, **tolerance)
"""


def start(cache, **environment):
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "L2O_KERNELS": "on", **environment}
    return subprocess.Popen([sys.executable, "-W", "error", "-c", SCRIPT], env=environment)


@pytest.mark.usefixtures("compiled")
def test_two_processes_compile_at_once_and_leave_one_library(tmp_path):
    processes = [start(tmp_path), start(tmp_path)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    files = list((tmp_path / "l2o" / "kernels").iterdir())
    assert len(files) == 1 and files[0].suffix == ".so"


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("instructions", ["haswell", "x86-64"])
def test_kernels_are_right_without_avx512(tmp_path, instructions):
    if os.uname().machine != "x86_64":
        pytest.skip("x86 instruction sets")
    assert start(tmp_path, CXX=f"g++ -march={instructions}").wait(timeout=300) == 0


@pytest.mark.usefixtures("compiled")
def test_a_damaged_library_is_built_again(tmp_path, monkeypatch, fresh_library):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("L2O_KERNELS", "on")
    path = build._cache_directory() / f"lstm_cpu-{build._key(build.Path(build.__file__).parent, build._compiler())}.so"
    path.write_bytes(b"not a library")
    assert build.library() is not None
    assert path.stat().st_size > 10_000


def run_both(problem):
    for module in (kernels, reference):
        vjp = module.sequence_vjp(problem.grads, problem.cotangents, *problem.state, problem.network)
        yield vjp, module.step(problem.grads[0], *problem.state, problem.network)


@pytest.mark.parametrize("how", ["CXX", "PATH"])
def test_without_a_compiler_the_reference_runs_and_one_warning_is_given(make_problem, monkeypatch, fresh_library, how):
    monkeypatch.delenv("L2O_KERNELS", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(how, "/nonexistent")
    problem = make_problem(2, 3, 5, 2, 10.0)
    with pytest.warns(RuntimeWarning, match="plain torch is used") as caught:
        ours, theirs = run_both(problem)
        run_both(problem)
    assert len(caught) == 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    weight = problem.weights[0].requires_grad_()
    updates, *_ = kernels.step(problem.grads[0], *problem.state, problem.network)
    assert torch.autograd.grad(updates.sum(), weight)[0].isfinite().all()  # the operator without its kernel


def test_kernels_can_be_switched_off_quietly(make_problem, monkeypatch, fresh_library):
    monkeypatch.setenv("L2O_KERNELS", "off")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, theirs = run_both(make_problem(2, 3, 5, 2, 10.0))
    assert build.library() is None
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_compiler_that_fails_is_reported_with_its_message(monkeypatch, fresh_library):
    monkeypatch.delenv("L2O_KERNELS", raising=False)
    monkeypatch.setenv("CXX", "false")
    with pytest.warns(RuntimeWarning, match="Cause: .*returned non-zero exit status 1"):
        assert build.library() is None


def test_importing_the_package_does_not_import_the_compiler():
    code = "import sys, torch, l2o; assert not {'torch._dynamo', 'triton'} & set(sys.modules)"  # 1.2 s and more
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
