"""The state of a training run as tensors and counters: what a file holds, and what each rank of a resumed run takes.

Everything that the next outer step depends on is here, in a form that does not depend on the number of ranks.
"""

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from meta_train.distributed import Message
from meta_train.tree import flatten_tree

if TYPE_CHECKING:
    from meta_train.trainer import Trainer

_COUNTERS = ("outer_step", "skipped", "diverged", "best")


def pack(trainer: "Trainer") -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the tensors and counters of a run on rank 0, None on the others; all ranks call it together.

    Raises:
        ValueError: if the ranks have drifted apart.
    """
    mine = [batch.tensors(f"batch/{number}") for number, batch in enumerate(trainer.batches)]
    common = flatten_tree(dict(trainer.rule.state_dict()), "rule") | {"loop/generator": trainer.generator.get_state()}
    common |= flatten_tree(dict(trainer.average.state_dict()), "average")
    for index, slots in trainer.adam.state_dict()["state"].items():
        common |= flatten_tree(slots, f"adam/{index}")
    digest = _digest(common) if trainer.ranks.n_ranks > 1 else None
    shares = trainer.ranks.gather(Message(digest, {name: t for tensors in mine for name, t in tensors.items()}))
    if shares is None:
        return None
    if any(other.values != shares[0].values for other in shares):
        raise ValueError(
            "the ranks have drifted apart: θ or the generator differs between them. Are all hosts of one kind, and "
            "does the task family draw from the given generator alone, as often whatever it finds?"
        )
    for batch, tensors in zip(trainer.batches, mine, strict=True):
        common |= {name: batch.join(name, [other.tensors[name] for other in shares]) for name in tensors}
    counters = {name: getattr(trainer, name) for name in _COUNTERS}
    counters["lengths"] = [(batch.horizon, batch.truncation) for batch in trainer.batches]
    return common, counters | {"window": trainer.progress.window}


def resume(trainer: "Trainer") -> None:
    """Go on from the state that rank 0 finds in the run directory, if there is one.

    Raises:
        ValueError: if it does not fit the config.
    """
    loaded = trainer.run.load_state() if trainer.ranks.is_main else None
    try:
        message = trainer.ranks.scatter(
            lambda rank: Message(None) if loaded is None else _part_of(trainer, rank, *loaded)
        )
        if message.values is not None:
            _restore(trainer, message.tensors, message.values)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        what = f"{trainer.run.path}: state.safetensors does not fit config.json ({error!r:.150})"
        raise ValueError(f"{what}; was one of them changed?") from error
    if trainer.ranks.is_main:
        trainer.run.truncate_log(trainer.outer_step)


def _part_of(trainer: "Trainer", rank: int, tensors: dict[str, Tensor], counters: dict[str, Any]) -> Message:
    """Return what a rank needs of a state that `pack` made: everything, but of the trajectories its share."""
    needed = dict(tensors)
    for number, batch in enumerate(trainer.batches):
        for name in [name for name in tensors if name.startswith(f"batch/{number}/")]:
            needed[name] = batch.cut(name, tensors[name], rank)
            if name.startswith(f"batch/{number}/trajectories/tasks/"):
                needed["all_" + name] = tensors[name]
    return Message(counters, needed)


def _restore(trainer: "Trainer", tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
    # Copies lie aligned in memory, as in the run that goes on; views into a file may sum in another order.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    for name in _COUNTERS:
        setattr(trainer, name, counters[name])
    trainer.progress.window = counters["window"]

    def group(prefix):
        return {name.removeprefix(prefix + "/"): t for name, t in tensors.items() if name.startswith(prefix + "/")}

    trainer.rule.load_state_dict(group("rule"))
    trainer.average.load_state_dict(group("average"))
    moments = {i: group(f"adam/{i}") for i, _ in enumerate(trainer.rule.parameters())}
    trainer.adam.load_state_dict(trainer.adam.state_dict() | {"state": {i: m for i, m in moments.items() if m}})
    trainer.generator.set_state(tensors["loop/generator"])
    here = {name: tensor.to(trainer.device) for name, tensor in tensors.items()}
    for number, (batch, lengths) in enumerate(zip(trainer.batches, counters["lengths"], strict=True)):
        batch.restore(f"batch/{number}", here, lengths)


def _digest(tensors: dict[str, Tensor]) -> str:
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(tensors[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
