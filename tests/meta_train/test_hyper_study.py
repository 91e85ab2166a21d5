"""The study of hypergradients: what it writes, its report reads, and the verdicts follow the numbers."""

import csv
import json

import pytest
import torch

from meta_train.cli import main
from meta_train.hyper_memory import with_peak
from meta_train.hyper_report import speed_up, value, write_hyper_report
from meta_train.hyper_study import HyperConfig, Row, games, run_hyper

TINY = HyperConfig(
    repeats=2,
    noise_features=5,
    speed_rows=60,
    speed_features=20,
    speed_cases=((0.0, (5,), (5, 400)),),
    memory_rows=400,
    memory_features=20,
    memory_iterations=(10, 100, 1000),
    polynomial_steps=5,
    flow_steps=3,
    flow_tests=1,
    game_steps=60,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hypergradients")
    with pytest.MonkeyPatch.context() as patch:  # the real rows and a fine grid take their time
        patch.setattr("meta_train.hyper_study.FLOW_GRID", (0.5, 1.0, 2.0))
        patch.setattr("meta_train.hyper_study.real_rows", lambda name, sizes, generator: _rows(generator))
        run_hyper(TINY, directory, "l2o hypergradients")
    return directory


def _rows(generator):
    from tasks.logistic import mostly_noise

    return mostly_noise((40, 30, 30, 50), 3, 3, generator)


def read(directory):
    with (directory / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_of_a_study_has_all_sections_and_the_figure(study):
    tables = write_hyper_report(study)
    readme = (study / "README.md").read_text()
    assert tables.split("\n")[0] in readme and (study / "hypergradients.png").stat().st_size > 30_000
    assert {row["part"] for row in read(study)} == {"logistic", "speed", "memory", "polynomial", "flow", "games"}
    for title in (
        "A weight decay",
        "What a hypergradient costs",
        "What a hypergradient holds",
        "Too little",
        "When to stop",
        "Min–max",
    ):
        assert f"## {title}" in readme


def test_measured_rates_of_the_game_are_those_of_the_closed_form(study):
    games = [row for row in read(study) if row["part"] == "games"]
    for method in ("descent–ascent", "extragradient"):
        rate, theory = (value(games, "bilinear", method, quantity) for quantity in ("rate", "theory"))
        assert rate == pytest.approx(theory, rel=0.02)  # of 15 steps, in which other singular values still count


def test_the_verdict_on_speed_compares_times_at_equal_accuracy():
    def measured(method, setting, error, seconds):
        cell = ("speed", "c", method, setting)
        rows = [Row(*cell, "error", error), Row(*cell, "cpu_s", seconds)]
        return [dict(zip(Row._fields, map(str, row), strict=True)) for row in rows]

    rows = measured("implicit", "1e-3", 1e-2, 0.5) + measured("implicit", "1e-5", 1e-4, 1.0)
    rows += measured("unrolled", "50", 1e-3, 4.0) + measured("unrolled", "100", 1e-5, 8.0)
    rows += measured("unrolled, accelerated", "50", 1e-3, 3.0)
    assert speed_up(rows, "c", "unrolled") == pytest.approx(8.0)
    assert speed_up(rows, "c", "unrolled, accelerated") is None


def test_only_unrolling_takes_memory_that_grows_with_the_number_of_iterations(study):
    rows = [row for row in read(study) if row["part"] == "memory"]
    held = lambda mode, count: value(rows, "logistic", mode, "peak_bytes", count)  # noqa: E731
    assert held("implicit", "1000") <= 1.5 * held("implicit", "10")  # GMRES keeps a few vectors more or less
    assert held("one step", "1000") == held("one step", "10")
    assert held("truncated, last 10", "1000") == held("truncated, last 10", "100")
    assert held("unrolled", "1000") > 9 * held("unrolled", "100")
    write_hyper_report(study)
    readme = (study / "README.md").read_text()
    for mode in ("implicit", "one step", "truncated, last 10"):
        assert f"- *{mode}*: memory independent of the number" in readme
    assert "- *unrolled*: memory grows with the number" in readme


def test_all_modes_but_the_biased_ones_come_to_the_exact_hypergradient(study):
    rows = [row for row in read(study) if row["part"] == "memory"]
    error = lambda mode: value(rows, "logistic", mode, "error", "1000")  # noqa: E731
    assert max(error("implicit"), error("unrolled")) < 1e-4 < 0.1 < error("one step")


def test_the_peak_of_a_chain_is_what_its_backward_pass_keeps(float64):
    def chain(function, length=100):
        first = torch.ones(1000, requires_grad=True)
        last = first
        for _ in range(length):
            last = function(last)
        return torch.autograd.grad(last.sum(), first)[0]

    numbers = {"sin": 103, "add": 3}  # sin keeps every argument; then the gradient before and after a step
    assert with_peak(lambda: chain(torch.sin))[1] // 8000 == numbers["sin"]
    assert with_peak(lambda: chain(lambda u: u + 1))[1] // 8000 == numbers["add"]
    assert torch.equal(with_peak(lambda: chain(torch.sin))[0], chain(torch.sin))


def test_the_stamp_is_taken_before_the_first_file(tmp_path, monkeypatch):
    monkeypatch.setattr("meta_train.hyper_study.describe_environment", lambda: {"files": len(list(tmp_path.iterdir()))})
    monkeypatch.setattr("meta_train.hyper_study.tqdm", lambda parts, **options: (games,))
    run_hyper(TINY, tmp_path, "l2o hypergradients")
    assert json.loads((tmp_path / "study.json").read_text())["environment"] == {"files": 0}


def test_the_command_rebuilds_the_report_from_the_files(study, capsys):
    write_hyper_report(study)
    before = (study / "README.md").read_text()
    (study / "README.md").unlink()
    main(["hypergradients", "--rebuild", "--out", str(study)])
    assert (study / "README.md").read_text() == before
    assert "README are in" in capsys.readouterr().out


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="is not a study of hypergradients: FileNotFoundError"):
        write_hyper_report(tmp_path)
