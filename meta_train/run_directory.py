"""A run on disk: config.json, env.json, metrics.jsonl, checkpoints/{last,best}, state.safetensors to resume from."""

import json
import math
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from meta_train.config import TrainConfig, from_json, to_json


class RunDirectory:
    """The files of one training run.

    Raises:
        FileExistsError: from `create`, if the directory already holds a run.
        ValueError: from `open` and `load_state`, if a file is missing or damaged.
    """

    def __init__(self, path: Path, config: TrainConfig):
        self.path, self.config = path, config
        self.checkpoints = path / "checkpoints"
        self._state, self._metrics = path / "state.safetensors", path / "metrics.jsonl"

    @classmethod
    def create(cls, path: Path, config: TrainConfig) -> "RunDirectory":
        """Make a fresh run directory."""
        if any((path / name).exists() for name in ("config.json", "state.safetensors", "checkpoints")):
            raise FileExistsError(
                f"{path} already holds a run; continue it with l2o resume {path}, or choose another --out"
            )
        path.mkdir(parents=True, exist_ok=True)
        _write_atomically(path / "env.json", json.dumps(describe_environment(), indent=2) + "\n")
        _write_atomically(path / "config.json", json.dumps(to_json(config), indent=2) + "\n")
        return cls(path, config)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Open an existing run to continue it."""
        try:
            values = json.loads((path / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not a run directory: config.json cannot be read ({error})") from error
        return cls(path, from_json(values))

    def save_state(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Write everything that the next outer step depends on, atomically."""
        fresh = self._state.with_suffix(".new")
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(tensors, fresh, metadata={"counters": json.dumps(counters)})
        os.replace(fresh, self._state)

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return what `save_state` wrote, or None before the first checkpoint."""
        if not self._state.exists():
            return None
        try:
            with safe_open(self._state, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["counters"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self._state} is damaged ({error}); start the run again") from error

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; JSON has no word for a number that is not finite but null."""
        record = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def truncate_log(self, outer_step: int) -> None:
        """Drop what was logged after a checkpoint, and a line cut short by a kill."""
        if not self._metrics.exists():
            return
        kept = []
        for line in self._metrics.read_text().splitlines():
            try:
                if json.loads(line)["outer_step"] <= outer_step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        _write_atomically(self._metrics, "".join(kept))


def describe_environment() -> dict[str, Any]:
    """Return versions, commit and machine."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("torch", "numpy", "safetensors")},
        "machine": {"system": platform.platform(), "cpu": _cpu_name(), "cores": os.cpu_count()},
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # git is not installed
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _write_atomically(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    os.replace(fresh, path)
