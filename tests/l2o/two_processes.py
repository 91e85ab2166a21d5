"""What each of two gloo processes does for test_integrations_distributed.py: all cases, one after the other.

    python two_processes.py RANK FOLDER

torch's distributed modules are imported where they are used: some warn on import.
"""

import functools
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import l2o
from l2o import LearnedOptimizer
from l2o.rules import Adam, AdamConfig, CoordinatewiseLSTM, LSTMConfig
from l2o.sharding import local

WORLD = 2
RULES = {
    "lstm": lambda: CoordinatewiseLSTM(LSTMConfig(hidden_size=4), torch.Generator().manual_seed(0)).double(),
    "adam": lambda: Adam(AdamConfig(lr=0.01)).double(),
}
TIGHT = l2o.Guard(trust=0.25, audition=2, smoothing=0.0)
"""Limits every step of the LSTM; with `AUDITION` it is the rule's turn, Adam's, and the rule's again."""
AUDITION = (0.1, 0.1, 1.0, 0.9, 0.1, 0.1)


def make_model(dtype=torch.float64, seed=0):
    """Layers whose sizes two processes cannot share equally; of the last, one process gets nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1)).to(dtype)


def inputs(step, rank=None, dtype=torch.float64):
    """The minibatch of a step, or a rank's half of it."""
    whole = torch.randn(8, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)
    return whole if rank is None else whole.chunk(WORLD)[rank]


def train(model, optimizer, steps, rank=None, dtype=torch.float64, clip=None, losses=()):
    for step in steps:
        optimizer.zero_grad()
        (model(inputs(step, rank, dtype)) - 1).square().mean().backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step(loss=losses[step]) if losses else optimizer.step()


def numbers(model):
    """All parameters, put together from their shards."""
    params = [param.full_tensor() if hasattr(param, "full_tensor") else param for param in model.parameters()]
    return torch.cat([param.detach().flatten().clone() for param in params])


def shard(model, mesh=None):
    from torch.distributed.fsdp import fully_shard

    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


# ---------------------------------------------------------------- what each of the two processes does


def ddp(rank, folder, name):
    model = nn.parallel.DistributedDataParallel(make_model())
    train(model, LearnedOptimizer(model.parameters(), RULES[name](), weight_decay=0.01), range(6), rank, clip=1.0)
    return {"end": numbers(model)}


def ddp_resume(rank, folder, dtype, state_dtype):
    def start(seed):
        model = nn.parallel.DistributedDataParallel(make_model(dtype, seed))
        return model, l2o.load("lstm-digits", model.parameters(), lr=0.5, state_dtype=state_dtype)

    path = folder / f"ddp-{dtype}-{state_dtype}.pt"
    model, optimizer = start(0)
    train(model, optimizer, range(4), rank, dtype)
    if rank == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    dist.barrier()
    train(model, optimizer, range(4, 8), rank, dtype)

    resumed, again = start(1)
    saved = torch.load(path, weights_only=True)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, range(4, 8), rank, dtype)
    return {"end": numbers(model), "resumed": numbers(resumed)}


def ddp_nan(rank, folder):
    model = nn.parallel.DistributedDataParallel(make_model())
    optimizer = LearnedOptimizer(model.parameters(), RULES["adam"]())
    train(model, optimizer, range(2), rank)
    before = numbers(model)
    loss = model(inputs(2, rank)).square().mean()
    loss = loss + (float("nan") * model.module[0].bias.sum() if rank == 1 else 0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {"before": before, "after": numbers(model), "skipped": optimizer.skipped}


def fsdp(rank, folder, name, shape):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    names = ("replicate", "shard")[-len(shape) :]
    model = shard(make_model(), dist.init_device_mesh("cpu", shape, mesh_dim_names=names))
    optimizer = LearnedOptimizer(model.parameters(), RULES[name](), weight_decay=0.01)
    train(model, optimizer, range(6), rank, clip=1.0)
    memory = optimizer.state[model[0].weight]
    entries = {name: (type(value).__name__, tuple(value.shape)) for name, value in memory.items()}
    full = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    told = l2o.memory(RULES[name](), model.parameters()).total
    held = sum(local(value).nbytes for memory in optimizer.state.values() for value in memory.values())
    return {"end": numbers(model), "entries": entries, "full": full, "told": told, "held": held}


def fsdp_guarded(rank, folder, shape):
    from torch.distributed.device_mesh import init_device_mesh

    names = ("replicate", "shard")[-len(shape) :]
    model = shard(make_model(), init_device_mesh("cpu", shape, mesh_dim_names=names))
    optimizer = LearnedOptimizer(model.parameters(), RULES["lstm"](), guard=TIGHT)
    train(model, optimizer, range(6), rank)
    train(model, optimizer, range(6), rank, losses=AUDITION)
    placements = {type(entry).__name__ for memory in optimizer.state.values() for entry in memory.values()}
    return {"end": numbers(model), "types": placements}


def fsdp_nan(rank, folder):
    model = shard(make_model())
    optimizer = LearnedOptimizer(model.parameters(), RULES["lstm"]())
    train(model, optimizer, range(2), rank)
    before = numbers(model)
    optimizer.zero_grad()
    model(inputs(2, rank)).square().mean().backward()
    if rank == 1:
        model[0].weight.grad.to_local()[0, 0] = float("nan")
    optimizer.step()
    return {"before": before, "after": numbers(model), "skipped": optimizer.skipped}


def start_sharded(seed):
    model = shard(make_model(seed=seed))
    return model, LearnedOptimizer(model.parameters(), RULES["lstm"](), state_dtype=torch.bfloat16)


def fsdp_resume(rank, folder):
    model, optimizer = start_sharded(0)
    train(model, optimizer, range(3), rank)
    path = folder / f"fsdp-{rank}.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    train(model, optimizer, range(3, 6), rank)

    resumed, again = start_sharded(1)
    saved = torch.load(path, weights_only=False)  # a DTensor is more than weights
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, range(3, 6), rank)
    return {"end": numbers(model), "resumed": numbers(resumed)}


def fsdp_resume_dcp(rank, folder):
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def content(model, optimizer):
        return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))

    model, optimizer = start_sharded(0)
    train(model, optimizer, range(3), rank)
    checkpoint.save(content(model, optimizer), checkpoint_id=folder / "dcp")
    train(model, optimizer, range(3, 6), rank)

    resumed, again = start_sharded(1)
    saved = content(resumed, again)
    checkpoint.load(saved, checkpoint_id=folder / "dcp")
    set_state_dict(resumed, again, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
    train(resumed, again, range(3, 6), rank)
    return {"end": numbers(model), "resumed": numbers(resumed)}


def zero(rank, folder, how):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    options = {"optimizer_class": LearnedOptimizer, "rule": RULES["adam"](), "weight_decay": 0.01}
    if how == "load":
        options = {"optimizer_class": functools.partial(l2o.load, "lstm-digits"), "lr": 0.5}

    def start(seed):
        module = make_model(seed=seed)
        groups = [{"params": list(module[:2].parameters()), "lr": 0.25}, {"params": list(module[2:].parameters())}]
        return nn.parallel.DistributedDataParallel(module), ZeroRedundancyOptimizer(groups, **options)

    model, optimizer = start(0)
    train(model, optimizer, range(3), rank)
    optimizer.consolidate_state_dict(to=0)
    path = folder / f"zero-{how}.pt"
    if rank == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    dist.barrier()
    train(model, optimizer, range(3, 6), rank)

    resumed, again = start(1)
    saved = torch.load(path, weights_only=True)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, range(3, 6), rank)
    return {"end": numbers(model), "resumed": numbers(resumed), "kept": len(optimizer.optim.state)}


RESUMED = [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.bfloat16)]
CASES = {
    **{f"ddp {name}": functools.partial(ddp, name=name) for name in RULES},
    **{f"ddp resume {a} {b}": functools.partial(ddp_resume, dtype=a, state_dtype=b) for a, b in RESUMED},
    "ddp nan": ddp_nan,
    **{f"fsdp {name}": functools.partial(fsdp, name=name, shape=(WORLD,)) for name in RULES},
    "fsdp replicated": functools.partial(fsdp, name="adam", shape=(WORLD, 1)),
    "fsdp guarded": functools.partial(fsdp_guarded, shape=(WORLD,)),
    "fsdp guarded replicated": functools.partial(fsdp_guarded, shape=(WORLD, 1)),
    "fsdp nan": fsdp_nan,
    "fsdp resume": fsdp_resume,
    "fsdp resume by dcp": fsdp_resume_dcp,
    **{f"zero {how}": functools.partial(zero, how=how) for how in ("class", "load")},
}


def work(rank: int, folder: Path) -> None:
    """Run all cases as one of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    results = {}
    for name, case in CASES.items():
        try:
            results[name] = case(rank, folder)
        except Exception:
            results[name] = traceback.format_exc()
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
