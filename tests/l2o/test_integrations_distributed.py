"""DistributedDataParallel, FSDP2 and ZeroRedundancyOptimizer: two gloo processes do what one process does.

The processes are started once and work through all cases (two_processes.py); each test looks at what they left.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from two_processes import AUDITION, CASES, RULES, TIGHT, WORLD, make_model, numbers, shard, train

from l2o import LearnedOptimizer
from l2o.guard_progress import Progress, Turn
from l2o.rules import SobolevAdam
from l2o.sharding import _behind

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Case -> results of the two processes."""
    folder = tmp_path_factory.mktemp("two")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, Path(__file__).with_name("two_processes.py")]
    processes = [
        subprocess.Popen([*command, str(rank), folder], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(WORLD)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * WORLD, "\n".join(errors)
    both = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]
    return {name: [both[rank][name] for rank in range(WORLD)] for name in CASES}


def finished(results, name):
    for result in results[name]:
        assert isinstance(result, dict), result
    return results[name]


def alone(name, steps=range(6)):
    """What one process makes of it, with the whole minibatches."""
    model = make_model()
    optimizer = LearnedOptimizer(model.parameters(), RULES[name](), weight_decay=0.01)
    train(model, optimizer, steps, clip=1.0)
    return model, optimizer


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_train_as_one(results, how, name):
    expected = numbers(alone(name)[0])
    for result in finished(results, f"{how} {name}"):
        torch.testing.assert_close(result["end"], expected, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(expected, numbers(make_model()), atol=1e-3)


def test_a_mesh_of_two_dimensions_trains_as_one_process(results):
    for result in finished(results, "fsdp replicated"):
        torch.testing.assert_close(result["end"], numbers(alone("adam")[0]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", ["fsdp guarded", "fsdp guarded replicated"])
def test_trust_region_and_audition_of_sharded_tensors_are_those_of_the_whole_ones(results, case):
    model, free = make_model(), make_model()
    optimizer = LearnedOptimizer(model.parameters(), RULES["lstm"](), guard=TIGHT)
    train(model, optimizer, range(6))
    train(model, optimizer, range(6), losses=AUDITION)
    progress = Progress(*optimizer.param_groups[0]["guard"])
    assert (progress.turn, progress.exchanges) == (Turn.RULE, 2)
    train(free, LearnedOptimizer(free.parameters(), RULES["lstm"]()), range(6))
    for result in finished(results, case):
        torch.testing.assert_close(result["end"], numbers(model), rtol=1e-9, atol=1e-11)
        assert result["types"] == {"Tensor", "DTensor"}  # "step" is a tensor
    assert not torch.allclose(numbers(model), numbers(free), atol=1e-3)


@pytest.mark.parametrize("case", [name for name in CASES if "resume" in name])
def test_resuming_in_the_middle_is_bit_for_bit(results, case):
    first, second = finished(results, case)
    for result in (first, second):
        assert torch.equal(result["resumed"], result["end"])
    assert torch.equal(first["end"], second["end"])


def test_a_gradient_that_is_nan_on_one_process_is_skipped_on_all(results):
    for case, tensor in {"ddp nan": slice(35, 42), "fsdp nan": slice(0, 35)}.items():
        first, second = finished(results, case)
        assert (first["skipped"], second["skipped"]) == (1, 1)
        assert torch.equal(first["after"], second["after"]) and first["after"].isfinite().all()
        moved = first["after"] != first["before"]
        assert not moved[tensor].any()
        moved[tensor] = True
        assert moved.all()


def test_sharded_state_lies_as_the_parameters(results):
    for result in finished(results, "fsdp lstm"):
        assert result["entries"] == {
            "step": ("Tensor", ()), "hidden": ("DTensor", (2, 4, 7, 5)), "cell": ("DTensor", (2, 4, 7, 5))
        }  # fmt: skip
        assert result["told"] == result["held"]


@pytest.mark.parametrize("name", RULES)
def test_a_sharded_state_put_together_is_that_of_one_process(results, name):
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    model, optimizer = alone(name)
    full, _ = (result["full"] for result in finished(results, f"fsdp {name}"))
    for key, param in model.named_parameters():
        for entry, value in optimizer.state[param].items():
            torch.testing.assert_close(full["state"][key][entry], value, rtol=1e-9, atol=1e-11)
    other = make_model()
    fresh = LearnedOptimizer(other.parameters(), RULES[name]())
    set_optimizer_state_dict(other, fresh, full)
    other.load_state_dict(model.state_dict())
    train(model, optimizer, range(6, 9))
    train(other, fresh, range(6, 9))
    torch.testing.assert_close(numbers(other), numbers(model), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("how", ["class", "load"])
def test_zero_redundancy_shares_the_memory_and_resumes_bit_for_bit(results, how):
    first, second = finished(results, f"zero {how}")
    assert first["kept"] + second["kept"] == 6 and min(first["kept"], second["kept"]) > 0
    for result in (first, second):
        assert torch.equal(result["resumed"], result["end"])
    assert torch.equal(first["end"], second["end"])


def test_zero_redundancy_trains_as_one_process(results):
    model = make_model()
    groups = [{"params": model[:2].parameters(), "lr": 0.25}, {"params": model[2:].parameters()}]
    train(model, LearnedOptimizer(groups, RULES["adam"](), weight_decay=0.01), range(6))
    torch.testing.assert_close(finished(results, "zero class")[0]["end"], numbers(model), rtol=1e-9, atol=1e-11)


def test_a_states_placement_is_that_of_the_parameter_behind_its_own_axes():
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    assert _behind(2, Shard(1)) == Shard(3)
    assert _behind(2, Replicate()) == Replicate()
    strided = _behind(2, _StridedShard(0, split_factor=2))  # FSDP2 over tensor parallelism
    assert (type(strided), strided.dim, strided.split_factor) == (_StridedShard, 2, 2)


def test_a_whole_state_for_a_sharded_parameter_is_refused(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model = shard(make_model())
        optimizer, other = (LearnedOptimizer(m.parameters(), RULES["adam"]()) for m in (model, make_model()))
        for param in other.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
        other.step()
        with pytest.raises(ValueError, match="both be DTensors or neither: load sharded states with"):
            optimizer.load_state_dict(other.state_dict())
    finally:
        dist.destroy_process_group()


def test_a_sharded_picture_is_not_filtered(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model = shard(make_model())
        optimizer = LearnedOptimizer(model.parameters(), SobolevAdam().double())
        model(torch.ones(2, 5, dtype=torch.float64)).sum().backward()
        with pytest.raises(RuntimeError, match="SobolevAdam filters whole tensors"):
            optimizer.step()
    finally:
        dist.destroy_process_group()
