"""A run on disk: config.json, settings.json, env.json, metrics.jsonl, checkpoints/{last,best}, state.safetensors.

config.json is what the result depends on; settings.json is how the run was asked for besides, which `l2o resume` takes
up again; env.json is where it ran; state.safetensors holds everything that the next step depends on.
"""

import contextlib
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from meta_train.config import TrainConfig
from meta_train.config_json import from_json, to_json
from meta_train.lock import LOCK_NAME
from tasks.task import TaskFamily

_DECISIVE = {"torch": ("packages", "torch"), "CPU": ("machine", "cpu"), "threads": ("threads",), "ranks": ("ranks",)}
"""Where `describe_environment` has what a resumed run must find as it was, to go on bit for bit."""


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
    def create(cls, path: Path, config: TrainConfig, settings: dict[str, Any] | None = None) -> "RunDirectory":
        """Make a fresh run directory; `settings` is what `settings()` returns."""
        if any((path / name).exists() for name in ("config.json", "state.safetensors", "checkpoints")):
            how = cls(path, config).continuation
            raise FileExistsError(f"{path} already holds a run; continue it with {how}, or choose another --out")
        path.mkdir(parents=True, exist_ok=True)
        _write_atomically(path / "env.json", json.dumps(describe_environment(), indent=2) + "\n")
        _write_atomically(path / "settings.json", json.dumps(settings or {}, indent=2) + "\n")
        _write_atomically(path / "config.json", json.dumps(to_json(config), indent=2) + "\n")
        return cls(path, config)

    @classmethod
    def open(cls, path: Path, task: TaskFamily | None = None) -> "RunDirectory":
        """Open an existing run to continue it; task families made in Python must be given again."""
        try:
            values = json.loads((path / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not a run directory: config.json cannot be read ({error})") from error
        return cls(path, from_json(values, task))

    @property
    def continuation(self) -> str:
        """How the run is continued."""
        made_in_python = "python" in to_json(self.config)["task"]
        return "the same call of meta_train.api.train" if made_in_python else f"l2o resume {self.path}"

    @property
    def has_state(self) -> bool:
        """Whether there is something to resume from."""
        return self._state.exists()

    def discard_unless_checkpointed(self) -> None:
        """Remove a run that came to nothing, so that its directory is free again; files of others stay."""
        if self.has_state or any((self.checkpoints / name).exists() for name in ("best", "last")):
            return
        shutil.rmtree(self.checkpoints, ignore_errors=True)  # what was cut short
        for name in ("config.json", "settings.json", "env.json", self._metrics.name, LOCK_NAME):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            self.path.rmdir()

    def environment(self) -> dict[str, Any]:
        """Return what `describe_environment` said when the run was made; empty if env.json cannot be read."""
        return self._facts("env.json")

    def settings(self) -> dict[str, Any]:
        """Return how the run was asked for besides its config; empty if settings.json cannot be read."""
        return self._facts("settings.json")

    def _facts(self, name: str) -> dict[str, Any]:
        try:
            values = json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def save_state(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Write everything that the next outer step depends on, atomically."""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        with _replacing(self._state) as fresh:
            save_file(tensors, fresh, metadata={"counters": json.dumps(counters)})

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return what `save_state` wrote, or None before the first checkpoint.

        Raises:
            ValueError: if the file cannot be read, or is damaged.
        """
        if not self.has_state:
            return None
        try:
            self._state.open("rb").close()  # safetensors calls a file without permission one that is not there
        except OSError as error:
            raise ValueError(f"{self._state} cannot be read: {error.strerror}") from error
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


def last_logged(run: Path, name: str) -> Any:
    """Return the last value of a field in the metrics.jsonl of a run directory; None if there is none."""
    try:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return None
    return next((record[name] for record in reversed(records) if name in record), None)


def describe_environment() -> dict[str, Any]:
    """Return versions, commit and machine."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("torch", "numpy", "safetensors")},
        "machine": {"system": platform.platform(), "cpu": _cpu_name(), "cores": os.cpu_count()},
        "threads": torch.get_num_threads(),
        "ranks": dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1,
    }


def made_on(environment: dict[str, Any]) -> str:
    """Return the lines of a report that say when, from which commit and where its numbers come.

    Args:
        environment: what `describe_environment` returned before the first file of the report was written; later the
            checkout differs from its commit by the report itself.
    """
    machine, threads = environment["machine"], environment["threads"]
    return (
        f"Made on {environment['time'][:10]} at commit {environment['commit']} with torch "
        f"{environment['packages']['torch']},\n"
        f"{machine['cpu']}, {machine['cores']} cores, {threads} thread{'' if threads == 1 else 's'}."
    )


def changes_since(then: dict[str, Any]) -> list[str]:
    """Return what is no longer as `describe_environment` once said, of all that decides the last bits of a result."""
    now, changes = describe_environment(), []
    for name, path in _DECISIVE.items():
        before, after = _look_up(then, path), _look_up(now, path)
        if before is not None and before != after:
            changes.append(f"{name} {before} (now {after})")
    return changes


def _look_up(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


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
    with _replacing(path) as fresh:
        fresh.write_text(text)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to, which takes the place of `path` if all went well, and is removed if not."""
    fresh = path.with_name(path.name + ".new")
    try:
        yield fresh
        os.replace(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
