"""A lock on a directory: one process at a time writes into it.

The operating system keeps the lock (flock) and drops it when the process ends, by SIGKILL too. Where the system or the
file system knows no flock, nothing is locked.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None

LOCK_NAME = ".lock"
"""File that is locked, and says by whom; it stays behind, unlocked."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of an existing directory.

    Raises:
        BlockingIOError: if another process holds it.
        OSError: if the directory cannot be written.
    """
    with (directory / LOCK_NAME).open("ab+", buffering=0) as file:
        if not _acquire(file.fileno()):
            file.seek(0)
            owner = file.read().decode(errors="replace") or "another process"
            raise BlockingIOError(f"{directory} is in use by {owner}; wait for it to end, or stop it")
        with contextlib.suppress(OSError):  # a full disk: the lock itself needs no space
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def _acquire(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
