"""Second-order steps: compiled equals eager and a loop written with nothing but torch; what cannot be compiled runs."""

import copy
import gc
import shutil
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from l2o.kernels.build import library
from l2o.rule import CoordinatewiseRule
from l2o.rules import SGD, Adam, AdamConfig, CoordinatewiseLSTM, LSTMConfig, SGDConfig
from meta_train import inner_steps
from meta_train.estimators import MetaLoss, Truncated
from meta_train.inner_steps import largest_divisor
from meta_train.speed_loops import TRUNCATION, hand_written_meta_loss
from meta_train.unroll import start
from tasks import MLP, ModuleTask, Quadratic

WEIGHTS = [0.5, 1.0, 0.25, 2.0, 1.5, 0.75]
compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")

RULES = {
    "sgd": lambda: SGD(SGDConfig(0.1)),
    "adam": lambda: Adam(AdamConfig(0.05, beta1=0.8, beta2=0.95)),
    "lstm": lambda: CoordinatewiseLSTM(LSTMConfig(hidden_size=3), seeded(2)),
}


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def without_codegen(monkeypatch):
    """Capture the graphs and differentiate them as ever, but run them op by op: seconds less a test."""
    torch.compiler.reset()
    monkeypatch.setattr(inner_steps, "_BACKEND", "aot_eager")


def estimate(rule, family, meta_loss=None, windows=2, length=4, **options):
    """Run windows in second order; return gradients, losses and last iterates in one vector."""
    estimator, generator, parts = Truncated(2, **options), seeded(), []
    trajectories = start(rule, family, 3, generator)
    for _ in range(windows):
        weights = torch.tensor(WEIGHTS[:length])
        result = estimator.estimate(rule, family, trajectories, meta_loss or MetaLoss(), weights, generator)
        trajectories = result.trajectories
        parts += [*result.grads.values(), result.losses, *trajectories.params.values(), *trajectories.state]
    assert all(not part.requires_grad for part in parts)
    return torch.cat([part.flatten() for part in parts])


# ---------------------------------------------------------------- compiled equals eager


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_captured_steps_equal_eager_ones(rule, family, without_codegen):
    rule = rule()
    expected = estimate(rule, family)
    torch.testing.assert_close(estimate(rule, family, compile_steps=2), expected, rtol=1e-12, atol=1e-14)
    assert counters["stats"]["unique_graphs"] > 0


def test_captured_steps_of_a_rule_that_mixes_coordinates_equal_eager_ones(normalized_sgd, family, without_codegen):
    assert not isinstance(normalized_sgd, CoordinatewiseRule)
    expected = estimate(normalized_sgd, family)
    torch.testing.assert_close(estimate(normalized_sgd, family, compile_steps=1), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"checkpoint_steps": 3}], ids=["whole", "checkpoints"])
@pytest.mark.parametrize("split", ["train", "inner_valid"])
@pytest.mark.parametrize("compile_steps", [1, 4])
def test_any_number_of_steps_to_a_graph_gives_the_same(options, split, compile_steps, float64, without_codegen):
    """Windows of 6 steps: graphs of 1 or of 3; with minibatches of its own the meta-loss is measured between steps."""
    rule, family = RULES["adam"](), MLP("digits", hidden=(4,), batch_size=16, init_scale=0.3)
    meta_loss = MetaLoss(split=split)
    expected = estimate(rule, family, meta_loss, length=6)
    found = estimate(rule, family, meta_loss, length=6, compile_steps=compile_steps, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@compiler
def test_compiled_steps_equal_eager_ones_in_float64(float64):
    rule, family = RULES["adam"](), Quadratic(dim=5, start="normal")
    expected = estimate(rule, family)
    torch.testing.assert_close(estimate(rule, family, compile_steps=2), expected, rtol=1e-12, atol=1e-14)


@compiler
def test_compiled_steps_equal_eager_ones_in_float32_and_multiply_by_our_kernel():
    rule, family = RULES["sgd"](), MLP("digits", hidden=(20,), batch_size=128, init_scale=0.3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = estimate(rule, family, compile_steps=1)
    expected = estimate(rule, family)
    if library() is not None:
        assert "l2o::bmm" in {event.name for event in profile.events() or ()}
    assert (found - expected).norm() < 1e-6 * expected.norm()
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)  # the gradient itself, of log_lr


# ---------------------------------------------------------------- equals torch alone


class SameMinibatch(MLP):
    """Every step sees the same samples, whoever draws them and in whichever order."""

    def sample_batch(self, tasks, n_tasks, split, generator):
        batch = super().sample_batch(tasks, 1, split, seeded(5))
        return {name: values.expand(n_tasks, *values.shape[1:]) for name, values in batch.items()}


@pytest.mark.parametrize("compile_steps", [None, 4])
def test_second_order_equals_a_loop_written_by_hand(compile_steps, float64, without_codegen):
    family, rule = SameMinibatch("digits", hidden=(5,), batch_size=16, init_scale=0.3), SGD(SGDConfig(0.1))
    trajectories, weights = start(rule, family, 3, seeded()), torch.full((TRUNCATION,), 1 / TRUNCATION)
    found = Truncated(2, compile_steps=compile_steps).estimate(
        rule, family, trajectories, MetaLoss(), weights, seeded()
    )
    log_lr = torch.tensor(0.1).log().requires_grad_()
    for i in range(3):
        params = [tensor[i] for tensor in trajectories.params.values()]
        (hand_written_meta_loss(family, log_lr, params, seeded()) / 3).backward()
    torch.testing.assert_close(found.grads["log_lr"], log_lr.grad, rtol=1e-11, atol=0)


# ---------------------------------------------------------------- what is compiled once


def test_windows_share_one_graph(float64, without_codegen):
    counters.clear()
    rule, family = RULES["adam"](), Quadratic(dim=3, start="normal")
    estimate(rule, family, windows=3, length=6, compile_steps=3)
    assert counters["stats"]["unique_graphs"] == 1
    estimate(rule, family, windows=2, length=5, compile_steps=3)  # no divisor but 1
    assert counters["stats"]["unique_graphs"] == 2


def test_compiled_code_and_minibatches_go_with_the_rule(float64, without_codegen):
    rule = RULES["sgd"]()
    estimate(rule, Quadratic(dim=3), compile_steps=2)
    alive = [weakref.ref(rule), weakref.ref(inner_steps._made[rule])]
    del rule
    torch.compiler.reset()
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


@pytest.mark.parametrize("checkpoint_steps, kept", [(None, 7), (2, 2)])
def test_no_more_minibatches_are_kept_than_a_graph_holds(checkpoint_steps, kept, float64):
    """The window's 6 and one for its last loss; with checkpoints those of the stretch that was unrolled last."""
    drawn = []

    class Watched(MLP):
        def sample_batch(self, *arguments):
            batch = super().sample_batch(*arguments)
            drawn.append(weakref.ref(batch["inputs"]))
            return batch

    rule = RULES["sgd"]()
    estimate(rule, Watched("digits", hidden=(3,), batch_size=4), length=6, checkpoint_steps=checkpoint_steps)
    gc.collect()
    assert len(drawn) >= 14
    assert sum(reference() is not None for reference in drawn) == kept


def test_largest_divisor_up_to_a_bound():
    assert [largest_divisor(20, bound) for bound in (1, 2, 3, 4, 5, 19, 99)] == [1, 2, 2, 4, 5, 10, 20]
    assert largest_divisor(7, 6) == 1


# ---------------------------------------------------------------- what cannot be compiled


def assert_runs_eagerly_after_one_warning(rule, family, match):
    expected = estimate(rule, family, length=3)
    with pytest.warns(RuntimeWarning, match=match) as warned:
        found = estimate(rule, family, length=3, compile_steps=1)
    assert torch.equal(found, expected)
    assert len([warning for warning in warned if "cannot be compiled" in str(warning.message)]) == 1


def test_without_a_compiler_steps_run_eagerly_after_one_warning(float64, monkeypatch):
    torch.compiler.reset()
    with torch._inductor.config.patch({"cpp.cxx": ("/nonexistent",), "force_disable_caches": True}):
        assert_runs_eagerly_after_one_warning(RULES["sgd"](), Quadratic(dim=3, start="normal"), "C\\+\\+|nonexistent")


def test_a_loop_over_tasks_runs_eagerly_after_one_warning(float64, generator):
    data = torch.randn(20, 2, generator=generator), torch.randn(20, 1, generator=generator)
    family = ModuleTask(lambda: nn.Linear(2, 1), nn.functional.mse_loss, data, batch_size=4, vectorized=False)
    assert_runs_eagerly_after_one_warning(RULES["sgd"](), family, "ModuleTask cannot be compiled.*one task at a time")


def test_a_graph_break_makes_steps_run_eagerly_after_one_warning(float64, without_codegen):
    class Looking(SGD):
        def update(self, grads, state, step):
            scale = 1.0 if float(grads.detach().abs().sum()) > 0 else 2.0
            return scale * super().update(grads, state, step)[0], state

    assert_runs_eagerly_after_one_warning(Looking(SGDConfig(0.1)), Quadratic(dim=3), "Quadratic cannot be compiled")


def test_an_error_of_the_loss_itself_is_raised(float64, without_codegen):
    family = Quadratic(dim=3)
    broken = copy.copy(family)
    object.__setattr__(broken, "loss", lambda params, task, batch: params["missing"])
    with pytest.warns(RuntimeWarning, match="cannot be compiled"), pytest.raises(KeyError, match="missing"):
        estimate(RULES["sgd"](), broken, compile_steps=1)


# ---------------------------------------------------------------- options


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="compile_steps must be at least 1, or None for none, got 0"):
        Truncated(2, compile_steps=0)
    with pytest.raises(ValueError, match="compile_steps is for second order; pass order=2"):
        Truncated(1, compile_steps=4)
