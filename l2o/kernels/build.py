"""Compile the C++ kernels at first use and load them with ctypes.

The sources use no torch headers, so one compiler call takes a few seconds. A library is built in a private directory
and moved into the cache in one atomic step: processes that build at the same time do not wait for one another, and
one that is killed leaves nothing behind that another would wait for. Its name is a hash of everything it depends on:
sources, flags, the compiler and the instruction set that the compiler chooses on this machine.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from pathlib import Path

import torch

_UNITS = ("lstm_cpu.cpp", "matmul_cpu.cpp", "support_newton_cpu.cpp", "fista_step_cpu.cpp", "least_squares_cpu.cpp")
_SOURCES = (*_UNITS, "lstm_memory.h", "lstm_tape.h", "lstm_cells.h", "shares.h", "simd.h")
# Not -ffast-math: it would let the compiler assume that there are no NaN, and a diverged run is data.
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fopenmp",
)
_FLAGS += ("-fPIC", "-fvisibility=hidden", "-w")

_lock = threading.Lock()
_loaded: list[ctypes.CDLL | None] = []  # empty until the first call of `library`


def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they are switched off or cannot be built (with one warning).

    The environment variable L2O_KERNELS=off switches them off; CXX names the compiler; the cache lies in
    $XDG_CACHE_HOME/l2o/kernels. All are read at the first call.
    """
    if not _loaded:
        with _lock:
            if not _loaded:
                _loaded.append(None if os.environ.get("L2O_KERNELS", "").lower() == "off" else _load_or_warn())
    return _loaded[0]


def _load_or_warn() -> ctypes.CDLL | None:
    try:
        return _load()
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        warnings.warn(
            f"l2o's fused CPU kernels cannot be built, so plain torch is used (about four times slower). Install g++, "
            f"point CXX to a C++17 compiler, or set L2O_KERNELS=off to silence this. Cause: {str(detail)[-500:]}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _load() -> ctypes.CDLL:
    folder, compiler = Path(__file__).parent, _compiler()
    path = _cache_directory() / f"lstm_cpu-{_key(folder, compiler)}.so"
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # for instance truncated by a full disk: build again
            pass
    _build(folder, compiler, path)
    return ctypes.CDLL(str(path))


def _compiler() -> list[str]:
    if "CXX" in os.environ:
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return [name]
    raise FileNotFoundError("no C++ compiler (g++, c++ or clang++) on PATH")


def _compile(compiler: list[str]) -> list[str]:
    return [compiler[0], *_FLAGS, *compiler[1:]]  # flags given in CXX come last, and so win


def _key(folder: Path, compiler: list[str]) -> str:
    """Hash the sources, the flags and the compiler's predefined macros: its version and what -march=native means."""
    command = [*_compile(compiler), "-dM", "-E", "-x", "c++", os.devnull]
    parts = [_run(command), repr((compiler, _FLAGS, _openmp())).encode()]
    parts += [(folder / name).read_bytes() for name in _SOURCES]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:24]


def _openmp() -> str:
    """Return torch's own OpenMP runtime: a second one in the process would spin against the first one's threads."""
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return str(bundled[0]) if bundled else "-lgomp"


def _build(folder: Path, compiler: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as private:
        units, built = {name: os.path.join(private, f"{name}.o") for name in _UNITS}, os.path.join(private, path.name)
        for name, unit in units.items():
            _run([*_compile(compiler), "-c", str(folder / name), "-o", unit])
        _run([compiler[0], "-shared", *units.values(), _openmp(), "-o", built])
        os.replace(built, path)


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=300, stdin=subprocess.DEVNULL).stdout


def _cache_directory() -> Path:
    """Return a directory that only this user can write to; a fresh temporary one where the home is read-only."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    directory = Path(base) / "l2o" / "kernels"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return directory
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="l2o-kernels-"))
