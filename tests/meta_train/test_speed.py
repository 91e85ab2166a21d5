"""The races of `l2o speed`: all runners cover the same distance, and what they took is written down as it was."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from l2o.rules import SGD, CoordinatewiseLSTM, LSTMConfig, SGDConfig
from meta_train import speed, speed_limits, speed_report
from meta_train.estimators import MetaLoss, Recorded, Truncated
from meta_train.run_directory import describe_environment
from meta_train.speed_loops import (
    LR,
    TRUNCATION,
    StockLoop,
    hand_written_meta_loss,
    hand_written_outer_step,
    our_outer_step,
    our_second_order_step,
    stock_meta_loss,
    stock_outer_step,
)
from meta_train.unroll import start
from tasks import MLP, Quadratic

WINDOW = torch.full((TRUNCATION,), 1 / TRUNCATION, dtype=torch.float64)


def seeded(seed=4):
    return torch.Generator().manual_seed(seed)


def same_weights(stock, p):
    """Return our rule with the stock loop's weights, and where its gates i, f, o, g stand in torch's i, f, g, o."""
    rule = CoordinatewiseLSTM(LSTMConfig(p=p))
    order = torch.cat([torch.arange(20) + 20 * gate for gate in (0, 1, 3, 2)])
    with torch.no_grad():
        for layer, cell in enumerate(stock.cells):
            rule.weights[layer].copy_(torch.cat([cell.weight_ih, cell.weight_hh], 1)[order])
            rule.biases[layer].copy_((cell.bias_ih + cell.bias_hh)[order])
        rule.output_weight.copy_(stock.output.weight)
        rule.output_bias.copy_(stock.output.bias)
    return rule, order


@pytest.mark.parametrize(
    "family, p", [(Quadratic(dim=4), None), (MLP("digits", hidden=(3,), batch_size=8), 10.0)], ids=["quadratic", "mlp"]
)
def test_the_stock_loop_has_the_meta_gradient_of_ours(family, p, float64):
    stock = StockLoop(p)
    rule, order = same_weights(stock, p)
    trajectories = start(rule, family, 3, seeded())
    stock_meta_loss(stock, family, trajectories.tasks, trajectories.params, seeded()).backward()
    for estimator in (Recorded(), Truncated(1)):
        found = estimator.estimate(rule, family, trajectories, MetaLoss(), WINDOW, seeded()).grads
        for layer, cell in enumerate(stock.cells):
            expected = torch.cat([cell.weight_ih.grad, cell.weight_hh.grad], 1)[order]
            # Twenty steps, of which each halves or doubles what rounding did to the one before: 1e-9 is generous.
            torch.testing.assert_close(found[f"weights.{layer}"], expected, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(found[f"biases.{layer}"], cell.bias_ih.grad[order], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found["output_weight"], stock.output.weight.grad, rtol=1e-9, atol=1e-12)


def test_the_loop_over_tasks_has_the_meta_gradient_of_ours(float64):
    """With one task the minibatches too are the same; several tasks are in test_inner_steps."""
    family = MLP("digits", hidden=(3,), batch_size=8, init_scale=0.3)
    rule = SGD(SGDConfig(LR))
    trajectories = start(rule, family, 1, seeded())
    found = Truncated(2).estimate(rule, family, trajectories, MetaLoss(), WINDOW, seeded()).grads
    log_lr = torch.tensor(LR).log().requires_grad_()
    params = [tensor[0] for tensor in trajectories.params.values()]
    hand_written_meta_loss(family, log_lr, params, seeded()).backward()
    torch.testing.assert_close(found["log_lr"], log_lr.grad, rtol=1e-11, atol=0)


@pytest.mark.parametrize("make", ["stock", "ours", "hand", "second"])
def test_an_outer_step_moves_the_weights(make, monkeypatch):
    moved = []

    class Watched(torch.optim.Adam):
        def step(self):
            before = [p.detach().clone() for group in self.param_groups for p in group["params"]]
            super().step()
            after = [p for group in self.param_groups for p in group["params"]]
            moved.extend(not torch.equal(old, new) for old, new in zip(before, after, strict=True))

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    family = MLP("digits", hidden=(3,), batch_size=8)
    build = {
        "stock": lambda: stock_outer_step(family, 2, 10.0),
        "ours": lambda: our_outer_step(Recorded(), family, 2, 10.0),
        "hand": lambda: hand_written_outer_step(family, 2),
        "second": lambda: our_second_order_step(Truncated(2), family, 2),
    }
    build[make]()()
    assert moved and all(moved)


@pytest.fixture
def small(monkeypatch):
    """Workloads that take milliseconds."""
    family = MLP("digits", hidden=(3,), batch_size=4)
    monkeypatch.setattr(speed, "WORKLOADS", {"quadratic": (Quadratic(dim=2), 3, None), "mlp8": (family, 2, 10.0)})
    monkeypatch.setattr(speed, "SECOND_ORDER", (family, 2))


def test_the_race_counts_inner_steps_by_cpu_and_by_clock(small, monkeypatch):
    ticks = {"process_time": iter(range(0, 10**6, 2)), "perf_counter": iter(range(0, 10**6, 5))}
    for clock, values in ticks.items():
        monkeypatch.setattr(speed.time, clock, values.__next__)
    results = speed.measure(repeats=1)
    assert list(results) == ["quadratic", "mlp8", "second-order"]
    for n_tasks, row in zip((3, 2, 2), results.values(), strict=True):
        assert row == {
            "stock": n_tasks * TRUNCATION / 2,
            "ours": n_tasks * TRUNCATION / 2,
            "stock_wall": n_tasks * TRUNCATION / 5,
            "ours_wall": n_tasks * TRUNCATION / 5,
            "ratio": 1.0,
        }


def test_a_race_takes_medians_of_interleaved_turns_after_one_that_does_not_count(monkeypatch):
    cost = {"left": iter([99, 1, 2, 30]), "right": iter([99, 5, 4, 6])}
    now, order = [0.0], []

    def runner(name):
        def run():
            order.append(name)
            now[0] += next(cost[name])

        return run

    for clock in ("process_time", "perf_counter"):
        monkeypatch.setattr(speed.time, clock, lambda: now[0])
    cpu, wall = speed._race({name: runner(name) for name in cost}, 3)
    assert cpu == wall == {"left": 2, "right": 5}
    assert order == ["left", "right"] * 4


def test_short_outer_steps_follow_one_another_in_a_turn(monkeypatch):
    now, order = [0.0], []

    def runner(name, cost):
        def run():
            order.append(name)
            now[0] += cost

        return run

    for clock in ("process_time", "perf_counter"):
        monkeypatch.setattr(speed.time, clock, lambda: now[0])
    _, wall = speed._race({"short": runner("short", speed.TURN * 0.4), "long": runner("long", speed.TURN * 7)}, 2)
    assert order == ["short", "short", "short", "long"] * 3
    assert wall == pytest.approx({"short": speed.TURN * 0.4, "long": speed.TURN * 7})


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_the_variants_race_too(small, monkeypatch):
    monkeypatch.setattr(speed, "WORKLOADS", {"quadratic": speed.WORKLOADS["quadratic"]})
    monkeypatch.setattr(speed.torch, "compile", lambda function, **_: function)
    results = speed.measure(1, with_truncated=True)
    methods = [{name for name in row if not name.endswith("_wall")} - {"ratio"} for row in results.values()]
    assert methods == [{"stock", "ours", "stock_compiled", "truncated"}, {"stock", "ours", "ours_compiled"}]


RESULTS = {
    "quadratic": {"stock": 100.0, "ours": 400.0, "truncated": 150.0, "stock_wall": 90.0, "ours_wall": 405.0,
                  "truncated_wall": 180.0, "ratio": 4.0},
    "second-order": {"stock": 10.0, "ours": 20.0, "ours_compiled": 35.123, "stock_wall": 10.0, "ours_wall": 21.0,
                     "ours_compiled_wall": 36.0, "ratio": 2.0},
}  # fmt: skip


def test_json_is_one_object_with_rates_and_ratio(capsys):
    speed_report.print_speed(RESULTS, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["quadratic"] == RESULTS["quadratic"]
    assert printed["second-order"]["ours_compiled"] == 35.12


def test_table_has_a_line_for_every_workload(capsys):
    speed_report.print_speed(RESULTS, as_json=False)
    head, *lines = capsys.readouterr().out.splitlines()
    assert "inner steps per CPU-second" in head
    assert lines[0].split() == ["quadratic", "100", "400", "4.00"]
    assert lines[1].split() == ["second-order", "10", "20", "2.00"]
    assert len(lines) == 2


def test_results_hold_every_method_and_the_figure_every_ratio(tmp_path, monkeypatch):
    drawn = []
    draw = speed_report._draw
    monkeypatch.setattr(speed_report, "_draw", lambda rows: drawn.append(draw(rows)) or drawn[0])
    windows = [{"tasks": 16, "steps": 100, "added_mb": 300.4, "record_mb": 102.8, "seconds": 12.34}]
    speed_report.write_speed({1: RESULTS, 2: RESULTS}, windows, 0.0987, tmp_path / "speed", "l2o speed --out there")
    rows = list(csv.DictReader((tmp_path / "speed" / "summary.csv").read_text().splitlines()))
    assert len(rows) == 12
    assert rows[1] == {
        "workload": "quadratic", "threads": "1", "method": "truncated", "per_cpu_second": "150", "per_second": "180",
        "ratio_cpu": "1.500", "ratio": "2.000",
    }  # fmt: skip
    readme = (tmp_path / "speed" / "README.md").read_text()
    assert "Command: `l2o speed --out there`" in readme and describe_environment()["machine"]["cpu"] in readme
    assert "| quadratic | 1 | 100 | 150 (1.50 ×) | 400 (4.00 ×) | – |" in readme
    assert "| 16 | 100 | 300 | 103 | 198 | 12.3 |" in readme and "**0.099 µs** a parameter" in readme
    assert json.loads((tmp_path / "speed" / "limits.json").read_text()) == {"windows": windows, "step_us": 0.0987}
    assert "| second-order | 2 | 10 | – | 21 (2.10 ×) | 36 (3.60 ×) |" in readme
    assert (tmp_path / "speed" / "speed.png").read_bytes()[:4] == b"\x89PNG"
    for panel, title in zip(drawn[0].axes, ("1 thread", "2 threads"), strict=True):
        assert panel.get_title() == title
        assert [text.get_text() for text in panel.texts] == ["2.0×", "4.5×", "2.1×", "3.6×"]
        assert sorted(bar.get_height() for bar in panel.patches) == [2.0, 2.1, 3.6, 4.5]


# --- memory and a deployed step ---


@pytest.mark.skipif(not os.environ.get("L2O_DATA"), reason="takes MNIST from L2O_DATA")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_a_longer_window_adds_its_longer_record(monkeypatch):
    monkeypatch.setattr(speed_limits, "WINDOWS", ((4, 100), (4, 500)))
    short, long = speed_limits.measure_windows()
    assert (long["tasks"], long["steps"]) == (4, 500) and 0 < short["seconds"] < long["seconds"]
    assert long["record_mb"] == pytest.approx(4 * 15_910 * 501 * 4 / 1e6)
    longer = long["record_mb"] - short["record_mb"]
    assert long["added_mb"] - short["added_mb"] == pytest.approx(longer, rel=0.15)  # autograd: 250 times as much


def test_the_time_of_a_step_is_in_microseconds_a_parameter(monkeypatch):
    monkeypatch.setattr(speed_limits, "STEP_PARAMETERS", 20_000)
    found = speed_limits.measure_step(repeats=3)
    assert 0 < found < 100  # microseconds; seconds or nanoseconds would lie outside
