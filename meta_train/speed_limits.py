"""What a window of meta-training adds to the memory, and what a deployed step costs; `l2o speed --out` writes both.

Each window is measured in a process of its own, because the peak of a process never falls.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import l2o
from l2o.rules import CoordinatewiseLSTM, LSTMConfig
from meta_train.estimators import MetaLoss, Recorded
from meta_train.unroll import start
from tasks import MLP

WINDOWS = ((16, 100), (1, 1_000), (1, 10_000))
"""MNIST MLPs 784-20-10 side by side, and inner steps of the window."""
COORDINATES = 15_910
"""Parameters of one of them."""
STEP_PARAMETERS = 1_000_000
"""Parameters of the deployed step."""
_MB = 1e6
_KEEP_NOTHING = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Makes the C library give freed memory back at once, so that the peak is what is in use."""


def measure_windows() -> list[dict[str, float]]:
    """Return for each of `WINDOWS` tasks, steps, added_mb (peak memory), record_mb (the gradients alone) and seconds.

    Empty where the system does not tell its peaks (they are read from Linux's /proc).
    """
    if not Path("/proc/self/clear_refs").exists():
        return []
    return [_in_a_process(*window) for window in WINDOWS]


def measure_step(repeats: int = 7) -> float:
    """Return the CPU microseconds per parameter and step of the LSTM 2×20 in `l2o.LearnedOptimizer`."""
    parameter = torch.nn.Parameter(torch.zeros(STEP_PARAMETERS))
    parameter.grad = torch.randn(STEP_PARAMETERS, generator=torch.Generator().manual_seed(0))
    optimizer = l2o.LearnedOptimizer([parameter], CoordinatewiseLSTM(LSTMConfig(), torch.Generator().manual_seed(0)))
    optimizer.step()
    seconds = []
    for _ in range(repeats):
        begun = time.process_time()
        optimizer.step()
        seconds.append(time.process_time() - begun)
    return 1e6 * statistics.median(seconds) / STEP_PARAMETERS


def added_peak(n_tasks: int, length: int) -> dict[str, float]:
    """Measure a window of the recorded gradient in this process; see `measure_windows`."""
    rule, family = CoordinatewiseLSTM(LSTMConfig(), torch.Generator().manual_seed(0)), MLP("mnist")
    generator, weights = torch.Generator().manual_seed(1), torch.full((length,), 1 / length)
    Recorded().estimate(rule, family, start(rule, family, 1, generator), MetaLoss(), weights[:3], generator)  # warm up
    trajectories = start(rule, family, n_tasks, generator)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before, begun = _resident("VmRSS"), time.perf_counter()
    Recorded().estimate(rule, family, trajectories, MetaLoss(), weights, generator)
    record = 4 * n_tasks * COORDINATES * (length + 1) / _MB
    facts = {"tasks": n_tasks, "steps": length, "added_mb": _resident("VmHWM") - before, "record_mb": record}
    return facts | {"seconds": time.perf_counter() - begun}


def _in_a_process(n_tasks: int, length: int) -> dict[str, float]:
    command = [sys.executable, "-m", "meta_train.speed_limits", str(n_tasks), str(length)]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    environment = os.environ | _KEEP_NOTHING | {"PYTHONPATH": path}
    return json.loads(subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout)


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / _MB for line in lines if line.startswith(field))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(added_peak(*map(int, sys.argv[1:3]))))
