"""Many processes: each rank unrolls a share of the tasks, and what they find is summed.

    torchrun --nproc-per-node N -m meta_train.cli train PRESET --out DIRECTORY

Every rank holds the same θ, Adam moments and generator states, and `sharding` gives each its tasks; one all-reduce per
outer step averages the meta-gradient. Rank 0 alone writes: it gathers the ranks' trajectories into the state file of a
run with one process, so a run can be resumed on any number of ranks. When a worker dies, torchrun (--max-restarts)
starts all of them again, and they go on from the last checkpoint.

Between ranks travel tensors and JSON only, nothing pickled. A rank that fails prints why and leaves; the others notice
that it is gone, and leave too.
"""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

DeviceName = Literal["cpu", "cuda"]

_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others before it gives them up."""


class Message(NamedTuple):
    """What ranks send each other."""

    values: Any
    """Anything JSON holds."""
    tensors: dict[str, Tensor] = {}


class Ranks:
    """A process among those that train together; alone by default.

    Args:
        rank: number of this process, from 0.
        n_ranks: number of processes.
        device: where this process computes.
        store: what outlives a restart by torchrun.
    """

    def __init__(self, rank: int = 0, n_ranks: int = 1, device: str | torch.device = "cpu", store: Store | None = None):
        self.rank, self.n_ranks, self.device, self._store = rank, n_ranks, torch.device(device), store

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks, the same bits on all of them; may overwrite the tensor."""
        if self.n_ranks > 1:
            with _contact():
                dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether the flag is up on any rank."""
        return flag if self.n_ranks == 1 else bool(self.sum(torch.tensor(int(flag))))

    def gather(self, message: Message) -> list[Message] | None:
        """Return the messages of all ranks on rank 0, None on the others; tensors are on the CPU."""
        if self.is_main:
            message = Message(message.values, {name: tensor.cpu() for name, tensor in message.tensors.items()})
            return [message, *(_receive(rank) for rank in range(1, self.n_ranks))]
        _send(message, 0)
        return None

    def scatter(self, message_for: Callable[[int], Message]) -> Message:
        """Return what rank 0 makes for this rank; message_for is called on rank 0 alone."""
        if not self.is_main:
            return _receive(0)
        for rank in range(1, self.n_ranks):
            _send(message_for(rank), rank)
        return message_for(0)

    def made_before_a_restart(self, path: Path) -> bool:
        """Whether this torchrun may have made a run before it restarted its ranks."""
        # With several hosts, only the one where a rank died counts the restart.
        restarted = under_torchrun() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        return restarted or (self._store is not None and self._store.check([f"l2o/made/{path}"]))

    def remember(self, path: Path) -> None:
        """Note for after a restart that this torchrun makes a run."""
        if self._store is not None:
            self._store.set(f"l2o/made/{path}", "")


@contextlib.contextmanager
def join_ranks(device: DeviceName = "cpu") -> Iterator[Ranks]:
    """Join the other processes of this torchrun, with gloo on CPUs and nccl on GPUs; without torchrun, be alone.

    Raises:
        ValueError: if the environment is not the one torchrun makes, or a GPU is asked for that is not there.
        ConnectionError: if the others cannot be reached.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here; take --device cpu, or install a CUDA build of torch")
    if not under_torchrun() or os.environ["WORLD_SIZE"] == "1":
        yield Ranks(device=device)
        return
    rank, n_ranks, local = (_environment(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"rank {rank} needs GPU {local}, but there are {torch.cuda.device_count()}: lower --nproc-per-node"
            )
        torch.cuda.set_device(local)
    try:
        store, _, _ = next(rendezvous("env://", rank, n_ranks, timeout=_TIMEOUT))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            store=_clean_store(store, rank, n_ranks), rank=rank, world_size=n_ranks, timeout=_TIMEOUT,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConnectionError(
            f"rank {rank} of {n_ranks} cannot reach the others at {where}: {reason}. Are all started by the same "
            "torchrun command, can the hosts reach each other, and is the network interface the right one "
            "(GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)?"
        ) from error
    yield Ranks(rank, n_ranks, f"cuda:{local}" if device == "cuda" else "cpu", store)
    dist.destroy_process_group()  # not after an error: a lost rank would be waited for


def under_torchrun() -> bool:
    """Whether torchrun, or something that sets the same environment, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def default_threads() -> int | None:
    """Return this rank's share of the host's cores; None (torch's own choice) without torchrun.

    torchrun sets OMP_NUM_THREADS=1 where it finds none, so only another value is somebody's wish.
    """
    wish = os.environ.get("OMP_NUM_THREADS", "1")
    if not under_torchrun() or wish != "1":
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // _environment("LOCAL_WORLD_SIZE"))


class Silence:
    """The progress of ranks which have nothing to say; see `tracking.Progress`."""

    window: list[float] = []

    def outer_step(self, outer_step: int, loss: float, inner_steps: int, diverged: int) -> None:
        """Say nothing."""

    def validation(self, outer_step: int, results: dict[str, float], best: float) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Say nothing."""


def _clean_store(store: Store, rank: int, n_ranks: int) -> Store:
    """Return a corner of torchrun's store in which ranks from before a restart have left nothing.

    torch 2.13 gives restarted ranks the store of the ones before, where gloo may find the address of a dead process
    and wait for it. So rank 0 invents a name for the corner; the others believe it when it comes with the name they
    have just invented for themselves, which no earlier rank 0 can know.
    """
    mine, deadline = uuid.uuid4().hex, time.monotonic() + _TIMEOUT.total_seconds()
    store.set(f"l2o/rank/{rank}", mine)
    others = [f"l2o/rank/{other}" for other in range(1, n_ranks)]
    while time.monotonic() < deadline:
        if rank == 0 and store.check(others):
            names = [store.get(other).decode() for other in others]
            store.set("l2o/corner", json.dumps([mine, *names]))
            if store.check([f"l2o/seen/{mine}/{name}" for name in names]):
                return PrefixStore(mine, store)
        elif rank > 0 and store.check(["l2o/corner"]):
            names = json.loads(store.get("l2o/corner"))
            if rank < len(names) and names[rank] == mine:
                store.set(f"l2o/seen/{names[0]}/{mine}", "")
                return PrefixStore(names[0], store)
        time.sleep(0.01)
    raise RuntimeError(f"not all {n_ranks} ranks came within {_TIMEOUT}")


@contextlib.contextmanager
def _contact() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch has no narrower class for a closed connection of gloo's
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"lost contact with another rank, whose own message may say why ({reason})") from error


def _send(message: Message, rank: int) -> None:
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in message.tensors.items()}
    for content in (json.dumps(message.values).encode(), safetensors.torch.save(tensors)):
        with _contact():
            dist.send(torch.tensor(len(content)), rank)
            dist.send(torch.frombuffer(bytearray(content), dtype=torch.uint8), rank)


def _receive(rank: int) -> Message:
    contents = []
    for _ in range(2):
        with _contact():
            size = torch.tensor(0)
            dist.recv(size, rank)
            content = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(content, rank)
        contents.append(content.numpy().tobytes())
    return Message(json.loads(contents[0]), safetensors.torch.load(contents[1]))


def _environment(name: str) -> int:
    try:
        return int(os.environ[name])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"RANK and WORLD_SIZE are set, but {name} is {os.environ.get(name)!r}: start the ranks with torchrun"
        ) from error
