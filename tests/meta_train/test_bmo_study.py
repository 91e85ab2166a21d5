"""The study of joint convergence: what it measures, and that its report follows the numbers."""

import json
from dataclasses import replace

import pytest

from meta_train import bmo_study
from meta_train.bilevel_problem import AffineBilevel
from meta_train.bmo_report import write_joint_report
from meta_train.bmo_study import joint_run, run_joint


def test_joint_error_is_at_most_1e_minus_4_with_bmo_and_not_with_unrolling():
    problem = AffineBilevel.sample()
    config, weighted = bmo_study.VARIANTS["BMO, H = W, annealed"]
    last = joint_run(problem, replace(config, steps=50), weighted)[-1]
    assert max(last[name] for name in ("u", "omega", "value", "slope")) <= 1e-4
    config, weighted = bmo_study.VARIANTS["unrolling (μ = 0)"]
    assert joint_run(problem, replace(config, steps=10), weighted)[-1]["u"] > 0.3


def test_the_study_writes_what_its_report_reads(monkeypatch, tmp_path):
    for name, value in {"INNER_STEPS": (5, 10), "OUTER_STEPS": 4, "SHOWN": 10}.items():
        monkeypatch.setattr(bmo_study, name, value)
    run_joint((), tmp_path, "l2o benchmark bilevel")
    assert "BMO, H = W" in write_joint_report(tmp_path)
    assert (tmp_path / "joint.png").stat().st_size > 10_000
    assert "## Verdict" in (tmp_path / "README.md").read_text()


def test_wrong_uses_are_refused(tmp_path):
    with pytest.raises(ValueError, match="takes no --checkpoint"):
        run_joint(("lista",), tmp_path, "")
    (tmp_path / "study.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="no such study"):
        write_joint_report(tmp_path)
