"""The entry point of `l2o`: runs a command, and turns what goes wrong into one line and an exit status.

All other imports wait until `main` runs, where an interruption or a missing package is one line too.
"""

import errno
import re
import sys
from typing import NoReturn

_EXTRA = ("tyro", "tqdm", "matplotlib", "sklearn", "PIL", "requests")
"""Packages of the extra `train` that some command cannot do without."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: list[str] | None = None) -> None:
    """Run one command.

    Raises:
        SystemExit: with 1 if it cannot be carried out (memory or disk are full, no window could be used), with 2 for a
            wrong value or file and where a package is missing, with 130 after an interruption.
    """
    try:
        _run(arguments)
    except KeyboardInterrupt as interruption:
        _end(str(interruption) or "interrupted", 130)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _EXTRA:
            raise
        _end("the command line needs the extra train: pip install 'l2o[train]'", 2)
    except (ValueError, OSError) as error:
        _end(str(error), 1 if isinstance(error, OSError) and error.errno in _FULL else 2)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        wanted = re.search(r"(?i)tried to allocate ([\d.]+ \w+)", str(error))
        size = f" (it wanted {wanted[1]} more)" if wanted else ""
        _end(f"out of memory{size}; take a smaller problem, fewer tasks (--n-tasks) or a shorter --truncation", 1)


def _run(arguments: list[str] | None) -> None:
    if (sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        from l2o import __version__

        print(f"l2o {__version__}")
        return
    from meta_train.commands import parse

    parse(arguments)()


def _is_out_of_memory(error: Exception) -> bool:
    # Only CUDA's allocator has a class for it.
    words = ("allocate memory", "out of memory", "not enough memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _end(message: str, status: int) -> NoReturn:
    print(f"l2o: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
