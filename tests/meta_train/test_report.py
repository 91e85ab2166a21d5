"""README and figure from the CSV files: what they say, that they can be rebuilt, that nothing is prettified."""

import json
import re
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from l2o.checkpoint import save_rule
from l2o.rules import SGD, Adam, AdamConfig, SGDConfig
from meta_train import report_figure
from meta_train.benchmark import run_benchmark
from meta_train.protocols import Protocol
from meta_train.report import write_report
from meta_train.report_results import read_results
from tasks import Quadratic

PROTOCOL = Protocol(
    name="tiny",
    question="Who is fastest?",
    settings={"start 0": Quadratic(dim=2), "one more": Quadratic(dim=2, distribution="uniform"), "third": Quadratic(3)},
    learned=(),
    problems=16,
    tuning_problems=4,
    sum_steps=8,
    steps=12,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A benchmark in which one learned rule is far too slow, one is sensible and one explodes."""
    root = tmp_path_factory.mktemp("report")
    rules = {"timid": SGD(SGDConfig(1e-6)), "sensible": Adam(AdamConfig(0.1)), "wild": SGD(SGDConfig(1e9))}
    sources = [str(save_rule(rule, root / name)) for name, rule in rules.items()]
    run_benchmark(PROTOCOL, sources, root / "out", "l2o benchmark tiny --checkpoint timid sensible wild")
    write_report(root / "out")
    return root / "out"


@pytest.fixture
def directory(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def test_the_readme_has_question_command_verdict_table_figure_and_method(finished):
    text = (finished / "README.md").read_text()
    assert text.startswith("# tiny: Who is fastest?")
    assert "Command: `l2o benchmark tiny --checkpoint timid sensible wild`" in text
    assert f"`l2o report {finished}`" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Verdict", "## Table", "## Method"]
    assert "![curves](curves.png)" in text
    assert all(f"**{setting}**" in text and f"*{setting}*: `Quadratic(" in text for setting in PROTOCOL.settings)
    assert re.search(r"Made on \d{4}-\d\d-\d\d at commit .* with torch ", text)


def test_every_table_ranks_all_methods_by_their_mean_sum_of_losses(finished):
    text = (finished / "README.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0] != "method"]
    assert len(rows) == 3 * 8
    for setting in range(3):
        table = rows[8 * setting : 8 * setting + 8]
        scores = [float(row[1].strip("*")) for row in table]
        assert scores == sorted(scores)
        assert table[0][1].startswith("**") and not table[1][1].startswith("**")
        assert {row[0].strip("*") for row in table} == {
            "timid", "sensible", "wild", "SGD", "momentum", "NAG", "RMSprop", "Adam",
        }  # fmt: skip
        assert all(row[0].startswith("**") == (row[0].strip("*") in ("timid", "sensible", "wild")) for row in table)


def test_a_learned_rule_that_loses_is_reported_as_losing(finished):
    verdict = (finished / "README.md").read_text().split("## Verdict")[1].split("## Table")[0]
    lines = [line for line in verdict.splitlines() if line]
    assert len(lines) == 3
    for line in lines:
        assert re.search(
            r"\*\*timid\*\* LOSES: \d+% above (SGD|momentum|NAG|RMSprop|Adam), the best classic, "
            r".* on \d+% of the problems\.",
            line,
        )
        assert line.endswith("**wild** LOSES: it diverged on 16 of 16 problems.")
        assert "inf%" not in line and "nan" not in line


def test_a_learned_rule_that_wins_is_reported_as_winning_by_the_right_share(directory):
    lines = (directory / "summary.csv").read_text().splitlines()
    columns = lines[0].split(",")
    rewritten = [lines[0]]
    for line in lines[1:]:
        row = dict(zip(columns, line.split(","), strict=True)) if line.count(",") == len(columns) - 1 else None
        if row is not None and row["method"] == "sensible":
            row |= {"sum_loss": "1.5", "wins": "0.75"}
        elif row is not None and row["kind"] == "classic":
            row |= {"sum_loss": "2.0"}
        rewritten.append(line if row is None else ",".join(row.values()))
    (directory / "summary.csv").write_text("\n".join(rewritten) + "\n")
    write_report(directory)
    text = (directory / "README.md").read_text()
    assert re.search(r"\*\*sensible\*\* wins: 25% below SGD, the best classic, .* lower on 75% of the problems\.", text)


def test_the_report_is_rebuilt_identically_from_the_csv_files(directory):
    readme, figure = (directory / "README.md").read_bytes(), (directory / "curves.png").read_bytes()
    (directory / "README.md").unlink()
    (directory / "curves.png").unlink()
    table = write_report(directory)
    assert (directory / "README.md").read_bytes() == readme
    assert (directory / "curves.png").read_bytes() == figure
    assert table in readme.decode()


def test_the_figure_is_an_image_with_curves_in_every_panel(finished):
    image = matplotlib.image.imread(finished / "curves.png")[..., :3]
    height, width, _ = image.shape
    assert height > 500 and width > 1800  # three panels in a row at 130 dots an inch, and none left empty
    coloured = np.ptp(image, axis=2) > 0.3
    # The outermost tenth and the lowest quarter hold the title and the legend.
    panels = coloured[height // 10 : height * 3 // 4]
    assert min(panel.sum() for panel in np.array_split(panels, 3, axis=1)) > 1000


@pytest.mark.parametrize("name", ["protocol.json", "summary.csv", "curves.csv"])
def test_a_directory_that_lacks_a_file_is_not_a_benchmarks(name, directory):
    (directory / name).unlink()
    with pytest.raises(ValueError, match=f"copy is not a benchmark's directory: .*{name}"):
        write_report(directory)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("protocol.json", "{"),
        ("protocol.json", "[]"),
        ("summary.csv", "a,b\n1,2\n"),
        ("curves.csv", ""),
        ("summary.csv", ""),
    ],
)
def test_damaged_files_are_an_error_that_names_the_directory(name, content, directory):
    (directory / name).write_text(content)
    with pytest.raises(ValueError, match="copy is not a benchmark's directory"):
        write_report(directory)


def test_a_directory_written_before_it_was_recorded_still_reports(directory):
    facts = json.loads((directory / "protocol.json").read_text())
    del facts["directory"]
    (directory / "protocol.json").write_text(json.dumps(facts))
    write_report(directory)
    assert "`l2o report results/tiny`" in (directory / "README.md").read_text()


def test_the_figure_has_a_panel_per_setting_and_bands_of_learned_rules_and_the_best_classic_alone(
    finished, monkeypatch
):
    drawn = []
    monkeypatch.setattr(report_figure.plt, "close", drawn.append)
    report_figure.draw_curves(results := read_results(finished), finished.parent / "again.png")
    panels = [axis for axis in drawn[0].axes if axis.axison]
    assert [axis.get_title() for axis in panels] == results.settings
    for axis in panels:
        assert len(axis.lines) == 8 + 1  # and the mark where training and tuning ended
        assert len(axis.collections) == 4
        looks = {(line.get_color(), line.get_linestyle(), line._dash_pattern[1] and tuple(line._dash_pattern[1]),
                  line.get_marker()) for line in axis.lines}  # fmt: skip
        assert len(looks) == 9, "no two lines look alike"
        highest = max(line.get_ydata()[0] for line in axis.lines[:8])
        assert axis.get_ylim()[1] <= 13 * highest * 1.01, "a diverging method leaves the axis to the others"
