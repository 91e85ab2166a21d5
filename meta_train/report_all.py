"""What `l2o report` does: rebuild the directories that are named, and put all of them on one page."""

from collections.abc import Sequence
from pathlib import Path

from meta_train.page import write_page
from meta_train.page_sections import Section, find_directories, is_benchmark, read_section
from meta_train.recovery_report import write_recovery_report
from meta_train.report import write_report

RESULTS = Path("results")
"""Where `l2o benchmark` writes unless told otherwise."""


def report_all(names: Sequence[Path], out: Path | None) -> tuple[list[Section], list[Path]]:
    """Rebuild README and figure of every benchmark, and write a page unless a single directory was named.

    Args:
        names: directories of results, or folders of such; empty is `RESULTS`.
        out: a page's file or the folder for report.md and report.html; None is beside the directories.

    Returns: a section for each directory, and the files written.

    Raises:
        ValueError: if a directory holds no results or damaged ones; if there is none; if a page of directories that
            are not beside each other is not given a place.
    """
    directories = expand(names)
    alone = out is None and list(names) == directories and len(directories) == 1
    stem = None if alone else _stem(names, directories, out)
    written = [file for directory in directories for file in _rebuild(directory)]
    sections = [read_section(directory) for directory in directories]
    return sections, written if stem is None else [*written, *write_page(sections, stem)]


def expand(names: Sequence[Path]) -> list[Path]:
    """Return the directories that names stand for: themselves, or all directories of results below a folder.

    Raises:
        ValueError: if no name is given and there is no folder of results.
    """
    if not names and not RESULTS.is_dir():
        raise ValueError(f"there is no {RESULTS}/ here; name at least one directory, such as {RESULTS}/mnist")
    found = []
    for name in names or (RESULTS,):
        found += [name] if is_benchmark(name) else find_directories(name) or [name]
    return list(dict.fromkeys(found))


def _stem(names: Sequence[Path], directories: Sequence[Path], out: Path | None) -> Path:
    if out is not None:
        return out.with_suffix("") if out.suffix in (".html", ".md") else out / "report"
    if len(names) <= 1:  # a folder
        return (names or (RESULTS,))[0] / "report"
    parents = {directory.resolve().parent: directory.parent for directory in directories}
    if len(parents) > 1:
        places = ", ".join(sorted(map(str, parents.values())))
        raise ValueError(f"the directories lie in several folders ({places}); say with --out where the page goes")
    return next(iter(parents.values())) / "report"


def _rebuild(directory: Path) -> list[Path]:
    """Rebuild a benchmark; other directories are shown as their own commands wrote them."""
    if (directory / "recovery.json").is_file():
        write_recovery_report(directory)
        return [directory / "README.md", directory / "curves.png"]
    if not is_benchmark(directory) and (directory / "README.md").is_file():
        return []
    write_report(directory)
    return [directory / "README.md", directory / "curves.png"]
