"""The outer loop: windows of trajectories, meta-gradients, Adam on θ, validation, checkpoints.

A trajectory of T inner steps is cut into windows of K. Each window gives one outer step; the next window goes on where
the last one stopped, and after T steps fresh problems are drawn. Everything that the next outer step depends on is in
the checkpoint, so a resumed run gives bit for bit the weights of an uninterrupted one.

With several ranks (see `distributed`) each runs this loop on a share of the tasks; rank 0 alone writes.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from l2o.checkpoint import save_rule
from l2o.rule import CoordinatewiseRule
from meta_train.config import to_json
from meta_train.distributed import Message, Ranks, Silence
from meta_train.estimators import MetaGradient
from meta_train.estimators.perturbed import EvolutionStrategy
from meta_train.run_directory import RunDirectory
from meta_train.seeds import derive_seed
from meta_train.sharding import Sharded, cut, join, share
from meta_train.tracking import Progress
from meta_train.tree import flatten_tree, rebuild_tree
from meta_train.unroll import evaluate


class Trainer:
    """Meta-train the rule of a run.

    Args:
        run: where to read the config and write checkpoints; continued from its state if it has one.
        progress: told of every outer step and validation.
        ranks: who trains together; this process alone by default.

    Raises:
        ValueError: if there are fewer tasks than ranks, or the state does not fit the config.
    """

    def __init__(self, run: RunDirectory, progress: Progress | Silence, ranks: Ranks | None = None):
        self.run, self.config, self.progress, self.ranks = run, run.config, progress, ranks or Ranks()
        config, self.device = self.config, self.ranks.device
        if config.n_tasks < self.ranks.n_ranks:
            raise ValueError(
                f"{self.ranks.n_ranks} ranks need a task each, but n_tasks is {config.n_tasks}; raise --n-tasks"
            )
        self.parts = [share(config.n_tasks, rank, self.ranks.n_ranks) for rank in range(self.ranks.n_ranks)]
        self.sizes = [part.stop - part.start for part in self.parts]
        self.family = Sharded(config.task, config.n_tasks, self.parts[self.ranks.rank])
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        on_cpu = self.generator if self.device.type == "cpu" else torch.Generator().manual_seed(config.seed)
        self.rule = config.build_rule(on_cpu).to(self.device)
        self.estimator = config.build_estimator()
        self.adam = torch.optim.Adam(self.rule.parameters(), lr=config.outer_lr)
        self.outer_step, self.skipped, self.best = 0, 0, math.inf
        self.stop_requested = False
        self._restart()
        self._resume()

    def train(self) -> dict[str, Any]:
        """Run to the last outer step, or until `stop_requested` on any rank; return a summary."""
        config = self.config
        while self.outer_step < config.outer_steps and not self.ranks.any(self.stop_requested):
            self._make_outer_step()
            if self.outer_step % config.validate_every == 0 or self.outer_step == config.outer_steps:
                self._validate()
            if self.outer_step % config.checkpoint_every == 0 or self.outer_step == config.outer_steps:
                self.save()
        self.save()
        return {"outer_steps": self.outer_step, "best_validation": self.best, "skipped_windows": self.skipped}

    def save(self) -> None:
        """Write checkpoints/last and the state to resume from; all ranks call it together."""
        packed = self._pack()
        if packed is not None:
            save_rule(self.rule, self.run.checkpoints / "last", training=self._card())
            self.run.save_state(*packed)

    def _make_outer_step(self) -> None:
        config, begun = self.config, int(self.trajectories.step)
        if begun >= config.horizon:
            self._restart()
            begun = 0
        weights = config.meta_loss.weights(begun, min(config.truncation, config.horizon - begun), config.horizon)
        result = self.estimator.estimate(
            self.rule, self.family, self.trajectories, config.meta_loss, weights, self.generator
        )
        if begun == 0:
            self.first_losses = result.losses[0]
        grads, loss, usable = self._average(result)
        if usable:
            self.trajectories = result.trajectories
            self._apply(grads)
        else:
            self.skipped += 1
            self._restart()
        self.outer_step += 1
        self.progress.outer_step(
            self.outer_step, loss if usable else math.nan, len(weights) * config.n_tasks, self.skipped
        )

    def _average(self, result: MetaGradient) -> tuple[dict[str, Tensor], float, bool]:
        """Return meta-gradient and loss averaged over all ranks' tasks, and whether all ranks can use the window."""
        exploded = ~(result.losses <= self.config.divergence * self.first_losses.abs()).all()
        weight = self.sizes[self.ranks.rank] / self.config.n_tasks
        pieces = [weight * tensor.reshape(-1) for tensor in (*result.grads.values(), result.losses.mean())]
        summed = self.ranks.sum(torch.cat([*pieces, exploded.reshape(1).to(pieces[0])]))
        *pieces, loss, exploded = summed.split([*(piece.numel() for piece in pieces), 1])
        grads = {
            name: piece.reshape(grad.shape).to(grad.dtype)
            for (name, grad), piece in zip(result.grads.items(), pieces, strict=True)
        }
        usable = exploded == 0 and all(bool(torch.isfinite(grad).all()) for grad in grads.values())
        return grads, loss.item(), bool(usable)

    def _apply(self, grads: dict[str, Tensor]) -> None:
        config = self.config
        for name, parameter in self.rule.named_parameters():
            parameter.grad = grads[name]
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.rule.parameters(), config.clip)
        decay = 0.5 * (1 + math.cos(math.pi * self.outer_step / config.outer_steps))
        for group in self.adam.param_groups:
            group["lr"] = config.outer_lr * (config.final_outer_lr + (1 - config.final_outer_lr) * decay)
        self.adam.step()

    def _validate(self) -> None:
        config = self.config
        losses = self._validation_losses()
        sums = losses.double().sum(0)
        sum_loss = sums.mean().item()
        if sum_loss < self.best:
            self.best = sum_loss
            results = {"outer_valid_sum_loss": sum_loss, "problems": config.valid_tasks, "horizon": config.horizon}
            if self.ranks.is_main:
                save_rule(self.rule, self.run.checkpoints / "best", training=self._card(), results=results)
        self.progress.validation(self.outer_step, sum_loss, losses[-1].mean().item(), self.best)

    def _validation_losses(self) -> Tensor:
        """Return the losses of all validation problems, shape (horizon, valid_tasks), on every rank."""
        config, n_tasks = self.config, self.config.valid_tasks
        generator = torch.Generator(self.device).manual_seed(derive_seed(config.seed, "validation"))
        part = share(n_tasks, self.ranks.rank, self.ranks.n_ranks)
        if n_tasks < self.ranks.n_ranks:  # a rank would have none
            return evaluate(self.rule, config.task, n_tasks, config.horizon, "outer_valid", generator)
        family = Sharded(config.task, n_tasks, part)
        mine = evaluate(self.rule, family, part.stop - part.start, config.horizon, "outer_valid", generator)
        losses = mine.new_zeros(config.horizon, n_tasks)
        losses[:, part] = mine
        return self.ranks.sum(losses)

    def _card(self) -> dict[str, Any]:
        return {"outer_step": self.outer_step, "config": to_json(self.config)}

    def _restart(self) -> None:
        self.trajectories = self.estimator.start(self.rule, self.family, self.sizes[self.ranks.rank], self.generator)
        self.first_losses = torch.full((), math.inf, device=self.device)

    def _pack(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the state of the run on rank 0, in a form that does not depend on the number of ranks."""
        mine = flatten_tree(self.trajectories, "trajectories") | {"loop/first_losses": self.first_losses}
        common = flatten_tree(dict(self.rule.state_dict()), "rule") | {"loop/generator": self.generator.get_state()}
        for index, slots in self.adam.state_dict()["state"].items():
            common |= flatten_tree(slots, f"adam/{index}")
        shares = self.ranks.gather(Message(_digest(common) if self.ranks.n_ranks > 1 else None, mine))
        if shares is None:
            return None
        if any(other.values != shares[0].values for other in shares):
            raise ValueError(
                "the ranks have drifted apart: θ or the generator differs between them. Are all hosts of one kind, and "
                "does the task family draw from the given generator alone, as often whatever it finds?"
            )
        tensors = {
            name: join([other.tensors[name] for other in shares], self.sizes, self._widths(name)) for name in mine
        }
        counters = {"outer_step": self.outer_step, "skipped": self.skipped, "best": self.best}
        return tensors | common, counters | {"window": self.progress.window}

    def _resume(self) -> None:
        loaded = self.run.load_state() if self.ranks.is_main else None
        try:
            message = self.ranks.scatter(
                lambda rank: Message(None) if loaded is None else self._state_of(rank, *loaded)
            )
            if message.values is not None:
                self._restore(message.tensors, message.values)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            what = f"{self.run.path}: state.safetensors does not fit config.json ({error!r:.150})"
            raise ValueError(f"{what}; was one of them changed?") from error
        if self.ranks.is_main:
            self.run.truncate_log(self.outer_step)

    def _state_of(self, rank: int, tensors: dict[str, Tensor], counters: dict[str, Any]) -> Message:
        """Return what a rank needs of a state that `_pack` made: everything, but of the trajectories its share."""
        part = self.parts[rank]

        def is_shared(name: str) -> bool:
            return name.startswith(("rule/", "adam/", "loop/generator"))

        cuts = {
            name: tensor if is_shared(name) else cut(tensor, self.config.n_tasks, part, self._widths(name))
            for name, tensor in tensors.items()
        }
        all_tasks = {
            "all_" + name: tensor for name, tensor in tensors.items() if name.startswith("trajectories/tasks/")
        }
        return Message(counters, cuts | all_tasks)

    def _restore(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        self.outer_step, self.skipped, self.best = (counters[name] for name in ("outer_step", "skipped", "best"))
        self.progress.window = counters["window"]

        def group(prefix):
            return {name.removeprefix(prefix + "/"): t for name, t in tensors.items() if name.startswith(prefix + "/")}

        self.rule.load_state_dict(group("rule"))
        moments = {i: group(f"adam/{i}") for i, _ in enumerate(self.rule.parameters())}
        self.adam.load_state_dict(self.adam.state_dict() | {"state": {i: m for i, m in moments.items() if m}})
        self.generator.set_state(tensors["loop/generator"])
        here = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        self.trajectories = rebuild_tree(self.trajectories, here, "trajectories")
        self.family.all_tasks = rebuild_tree(self.family.all_tasks, here, "all_trajectories/tasks")
        self.first_losses = here["loop/first_losses"]

    def _widths(self, name: str) -> Sequence[int] | None:
        """Return where a tensor of the trajectories has its task axis, as `sharding.join` takes it."""
        flat = isinstance(self.rule, CoordinatewiseRule) and not isinstance(self.estimator, EvolutionStrategy)
        if not (flat and name.startswith("trajectories/state/")):
            return None
        return [tensor[0].numel() for tensor in self.trajectories.params.values()]


def _digest(tensors: dict[str, Tensor]) -> str:
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(tensors[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
