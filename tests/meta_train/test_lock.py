"""The lock on a directory: one process at a time, and none after SIGKILL."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meta_train import lock
from meta_train.lock import LOCK_NAME, locked

HOLD = """
import sys, time
from pathlib import Path
from meta_train.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path."""
    command = [sys.executable, "-c", HOLD, tmp_path]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def owner(directory: Path) -> int:
    """The process that the lock's file names."""
    found = re.fullmatch(r"process (\d+) on .+", (directory / LOCK_NAME).read_text())
    assert found is not None
    return int(found[1])


def test_a_second_process_is_refused_and_told_who_has_the_lock(holder, tmp_path):
    with pytest.raises(BlockingIOError) as caught, locked(tmp_path):
        pass
    assert f"{tmp_path} is in use by process {holder.pid} on " in str(caught.value)


def test_the_lock_does_not_survive_sigkill(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL and owner(tmp_path) == holder.pid
    with locked(tmp_path):
        assert owner(tmp_path) == os.getpid()


def test_the_lock_is_free_again_after_the_block_whatever_happened_in_it(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path):
            raise KeyError
    with locked(tmp_path), pytest.raises(BlockingIOError), locked(tmp_path):
        pass


def test_without_flock_nothing_is_locked(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with locked(tmp_path):
        assert owner(tmp_path) == os.getpid() and holder.poll() is None


def test_on_a_file_system_without_locks_nothing_is_locked(holder, tmp_path, monkeypatch):
    asked = []

    def unsupported(*arguments):
        asked.append(arguments)
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with locked(tmp_path):
        assert owner(tmp_path) == os.getpid() and holder.poll() is None
    assert len(asked) == 1


def test_a_directory_that_does_not_exist_cannot_be_locked(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), locked(tmp_path / "nowhere"):
        pass
    assert list(tmp_path.iterdir()) == []
