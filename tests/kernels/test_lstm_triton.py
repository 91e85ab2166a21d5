"""The Triton kernels: in Triton's interpreter on the CPU, translated for a GPU that is not there, and on a real one."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from l2o import kernels
from l2o.kernels import Network, reference

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install --no-deps triton"
)

# Translates all kernels to machine code for compute capability 9.0, as a first call would: Triton brings the assembler.
# Writes a line each: the kernel, the type of its numbers, and which instructions the translation has.
COMPILE = """
import triton
from l2o.kernels.lstm_triton_backward import backward_kernel
from l2o.kernels.lstm_triton_forward import record_kernel, step_kernel
constants = dict(LAYERS=2, H=3, F=2, P=10.0, FLOOR=4.5e-5, LOG_EPS=0.0, SCALE=0.1, FORGET_BIAS=0.0, BLOCK=128)
state = ("hidden", "cell", "next_hidden", "next_cell")

def translate(kernel, number, memory, **more):
    values = constants | more
    def kind(name):
        if name in values:
            return "constexpr"
        return "i32" if name in ("n", "m", "steps") else memory if name in state else number
    places = {(kernel.arg_names.index(name),): value for name, value in values.items()}
    source = triton.compiler.ASTSource(kernel, {name: kind(name) for name in kernel.arg_names}, constexprs=places)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    assembly = triton.compile(source, target=target, options={"num_warps": 4, "num_stages": 1}).asm["ptx"]
    found = [instruction for instruction in ("cvt.rn.bf16", "ex2.approx.ftz.f32") if instruction in assembly]
    print(kernel.fn.__name__, number, *found)

translate(step_kernel, "*fp32", "*bf16")
translate(step_kernel, "*fp64", "*fp64")
translate(record_kernel, "*fp32", "*fp32")
translate(backward_kernel, "*fp32", "*fp32", D_GRADS=True)
translate(backward_kernel, "*fp64", "*fp64", D_GRADS=False)
"""
COMPILED = [
    "step_kernel *fp32 cvt.rn.bf16 ex2.approx.ftz.f32",  # rounds to bfloat16, and takes the fast sigmoid
    "step_kernel *fp64",
    "record_kernel *fp32 ex2.approx.ftz.f32",
    "backward_kernel *fp32",  # has the sigmoids from the tape
    "backward_kernel *fp64",
]


def run(command, **environment):
    process = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr[-5000:]
    return process.stdout


@pytest.mark.parametrize("device", ["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_cases_pass(device):
    # In a process of its own: Triton reads the variable when it is imported, and torch.compile imports it.
    cases = Path(__file__).with_name("triton_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cases]
    output = run(command, TRITON_INTERPRET="1" if device == "interpreter" else "0", OMP_NUM_THREADS="1")
    assert re.match(r"\d+ passed in", output.splitlines()[-1])  # and none skipped


def test_the_compiler_takes_what_the_interpreter_takes(tmp_path):
    script = [sys.executable, "-c", COMPILE]
    lines = run(script, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path), OMP_NUM_THREADS="1")
    assert lines.splitlines() == COMPILED


@pytest.mark.gpu
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_operator_on_a_gpu_equals_the_reference(make_problem, state_dtype):
    problem = make_problem(2, 20, 1000, 3, 10.0, dtype=torch.float32)
    theta = [tensor.cuda().requires_grad_() for tensor in (*problem.weights, *problem.biases, *problem.theta[2:])]
    network = Network(theta[:2], theta[2:4], *theta[4:], **problem.constants)
    state = [tensor.cuda().to(state_dtype) for tensor in problem.state]

    def gradients(step):
        updates, *after = step(problem.grads[0].cuda(), *state, network)
        return torch.autograd.grad(updates.sum() + sum(tensor.float().sum() for tensor in after), theta)

    ours, theirs = gradients(kernels.step), gradients(reference.step)
    for mine, plain in zip(ours, theirs, strict=True):
        # float32: sums of 1,000 terms; bfloat16: the replay does not round what goes from layer to layer.
        assert (mine - plain).norm() / plain.norm() < (1e-5 if state_dtype == torch.float32 else 1e-2)
