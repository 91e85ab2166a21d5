"""The outer loop: windows of trajectories, meta-gradients, Adam on θ, validation, checkpoints.

A trajectory of T inner steps is cut into windows of K. Each window gives one outer step; the next window goes on where
the last one stopped, and after T steps fresh problems are drawn (see `batch`). Everything that the next outer step
depends on is in the checkpoint, so a resumed run gives bit for bit the weights of an uninterrupted one.

With several ranks (see `distributed`) each runs this loop on a share of the tasks; rank 0 alone writes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from l2o.checkpoint import load_rule, save_rule
from l2o.rule import UpdateRule
from meta_train.batch import Batch, Contribution
from meta_train.config_json import to_json
from meta_train.distributed import Ranks, Silence
from meta_train.lstm_gains import LSTMGains
from meta_train.run_directory import RunDirectory
from meta_train.seeds import derive_seed
from meta_train.sharding import Sharded, share
from meta_train.tracking import Progress
from meta_train.trainer_state import pack, resume
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
        if config.n_tasks < self.ranks.n_ranks * config.stagger:
            raise ValueError(
                f"{self.ranks.n_ranks} ranks need a task each in every batch, but n_tasks is {config.n_tasks} with "
                f"stagger {config.stagger}; raise --n-tasks"
            )
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        on_cpu = self.generator if self.device.type == "cpu" else torch.Generator().manual_seed(config.seed)
        rule = self._started() or config.build_rule(on_cpu)
        self.rule = (LSTMGains(rule) if config.learn == "gains" else rule).to(self.device)  # pyright: ignore (checked)
        self.batches = self._make_batches()
        self.average = AveragedModel(self.rule, multi_avg_fn=get_ema_multi_avg_fn(config.average))
        self.adam = torch.optim.Adam(self._parameter_groups(), lr=config.outer_lr, fused=True)
        self.outer_step, self.skipped, self.diverged, self.best = 0, 0, 0, math.inf
        self.stop_requested = False
        resume(self)

    def train(self) -> dict[str, Any]:
        """Run to the last outer step, or until `stop_requested` on any rank; return a summary."""
        config = self.config
        if config.start_from is not None and self.outer_step == 0:
            self._validate()  # what is trained already must be beaten
        while self.outer_step < config.outer_steps and not self.ranks.any(self.stop_requested):
            self._make_outer_step()
            if self.outer_step % config.validate_every == 0 or self.outer_step == config.outer_steps:
                self._validate()
            if self.outer_step % config.checkpoint_every == 0 or self.outer_step == config.outer_steps:
                self.save()
        self.save()
        return {
            "outer_steps": self.outer_step, "best_validation": self.best,
            "skipped_windows": self.skipped, "diverged_trajectories": self.diverged,
        }  # fmt: skip

    @property
    def kept(self) -> UpdateRule:
        """The rule that is validated: the average of the weights, where there is one."""
        return self.average.module if self.config.average else self.rule  # pyright: ignore (a copy of the rule)

    def _started(self) -> UpdateRule | None:
        """Return the rule of the last checkpoint, to take the weights of the state; what it began with may be gone."""
        last = self.run.checkpoints / "last"
        continued = self.config.start_from is not None and self.run.has_state and last.is_dir()
        return load_rule(last) if continued else None

    def _deployed(self) -> UpdateRule:
        """Return what is saved: the rule that is validated, learned gains taken up into its weights."""
        return self.kept.merged() if isinstance(self.kept, LSTMGains) else self.kept

    def save(self) -> None:
        """Write checkpoints/last and the state to resume from; all ranks call it together."""
        packed = pack(self)
        if packed is not None:
            save_rule(self._deployed(), self.run.checkpoints / "last", training=self._card())
            self.run.save_state(*packed)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Return all weights in one group, or those that differ in their learning rate in groups of their own.

        A factor of the gradient would do nothing: Adam divides it out.
        """
        config = self.config
        if config.lengths.layer_lr == config.matrix_lr == 1:
            return [{"params": list(self.rule.parameters()), "layer": None, "factor": 1.0}]
        groups: dict[tuple[int | None, float], list[Tensor]] = {}
        for name, parameter in self.rule.named_parameters():
            layer = name.rpartition(".")[2]  # a list's entries are called name.0, name.1, …
            factor = config.matrix_lr if parameter.dim() > 1 else 1.0
            groups.setdefault((int(layer) if layer.isdigit() else None, factor), []).append(parameter)
        return [{"params": found, "layer": layer, "factor": factor} for (layer, factor), found in groups.items()]

    def _make_batches(self) -> list[Batch]:
        config, ranks = self.config, self.ranks
        parts = [share(config.n_tasks, batch, config.stagger) for batch in range(config.stagger)]
        return [
            Batch(
                config, self.rule, self.generator, part.stop - part.start, ranks.rank, ranks.n_ranks,
                phase=(number + 1) / config.stagger,
            )
            for number, part in enumerate(parts)
        ]  # fmt: skip

    def _make_outer_step(self) -> None:
        config, progress = self.config, self.outer_step / self.config.outer_steps
        found = [batch.estimate(progress) for batch in self.batches]
        grads, loss, living, lost = self._average(found)
        usable = sum(living) > 0 and all(bool(torch.isfinite(grad).all()) for grad in grads.values())
        if usable:
            self._apply(grads)
        self.skipped, self.diverged = self.skipped + (not usable), self.diverged + lost
        self.outer_step += 1
        for batch, n_living in zip(self.batches, living, strict=True):
            batch.settle(usable and n_living > 0, self.outer_step / config.outer_steps)
        inner_steps = sum(batch.n_tasks * part.inner_steps for batch, part in zip(self.batches, found, strict=True))
        self.progress.outer_step(self.outer_step, loss if usable else math.nan, inner_steps, self.diverged)

    def _average(self, found: Sequence[Contribution]) -> tuple[dict[str, Tensor], float, list[int], int]:
        """Return meta-gradient and loss averaged over all ranks' living tasks, those of each batch, and the lost."""
        grads = {name: sum((part.grads[name] for part in found[1:]), grad) for name, grad in found[0].grads.items()}
        loss = torch.stack([part.loss for part in found]).sum()
        counts = torch.tensor([part.living for part in found] + [sum(part.lost for part in found)], device=self.device)
        pieces = [grad.reshape(-1) for grad in grads.values()] + [loss.reshape(1)]
        summed = self.ranks.sum(torch.cat([*pieces, counts.to(pieces[0])]))
        *pieces, counts = summed.split([*(piece.numel() for piece in pieces), len(counts)])
        *living, lost = (round(count) for count in counts.tolist())
        *pieces, loss = (piece / max(sum(living), 1) for piece in pieces)
        averages = {
            name: piece.reshape(grad.shape).to(grad.dtype)
            for (name, grad), piece in zip(grads.items(), pieces, strict=True)
        }
        return averages, loss.item(), living, lost

    def _apply(self, grads: dict[str, Tensor]) -> None:
        config = self.config
        for name, parameter in self.rule.named_parameters():
            parameter.grad = grads[name]
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.rule.parameters(), config.clip)
        decay = 0.5 * (1 + math.cos(math.pi * self.outer_step / config.outer_steps))
        rate = config.outer_lr * (config.final_outer_lr + (1 - config.final_outer_lr) * decay)
        for group in self.adam.param_groups:
            progress = self.outer_step / config.outer_steps
            factor = config.lengths.lr_factor(group["layer"], config.horizon, progress)
            group["lr"] = rate * group["factor"] * factor
        self.adam.step()
        self.average.update_parameters(self.rule)

    def _validate(self) -> None:
        config = self.config
        losses = self._validation_losses().double()
        weights = config.meta_loss.weights(0, config.horizon, config.horizon).to(losses)
        score = torch.tensordot(weights, config.meta_loss.of(losses[1:]), 1).mean().item()
        results = {
            "meta_loss": score,
            "sum_loss": losses[:-1].sum(0).mean().item(),
            "final_loss": losses[-1].mean().item(),
        }
        if score < self.best:
            self.best = score
            if self.ranks.is_main:
                card = {f"outer_valid_{name}": value for name, value in results.items()}
                card |= {"problems": config.valid_tasks, "horizon": config.horizon}
                save_rule(self._deployed(), self.run.checkpoints / "best", training=self._card(), results=card)
        self.progress.validation(self.outer_step, results, self.best)

    def _validation_losses(self) -> Tensor:
        """Return the losses of all validation problems at θ_0 … θ_T, shape (T + 1, valid_tasks), on every rank."""
        config, n_tasks, length = self.config, self.config.valid_tasks, self.config.horizon + 1
        generator = torch.Generator(self.device).manual_seed(derive_seed(config.seed, "validation"))
        part = share(n_tasks, self.ranks.rank, self.ranks.n_ranks)
        if n_tasks < self.ranks.n_ranks:  # a rank would have none
            return evaluate(self.kept, config.task, n_tasks, length, "outer_valid", generator)
        family = Sharded(config.task, n_tasks, part)
        mine = evaluate(self.kept, family, part.stop - part.start, length, "outer_valid", generator)
        losses = mine.new_zeros(length, n_tasks)
        losses[:, part] = mine
        return self.ranks.sum(losses)

    def _card(self) -> dict[str, Any]:
        return {"outer_step": self.outer_step, "config": to_json(self.config)}
