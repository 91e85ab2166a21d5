"""The outer loop: windows of trajectories, meta-gradients, Adam on θ, validation, checkpoints.

A trajectory of T inner steps is cut into windows of K. Each window gives one outer step; the next window goes on where
the last one stopped, and after T steps fresh problems are drawn. Everything that the next outer step depends on is in
the checkpoint, so a resumed run gives bit for bit the weights of an uninterrupted one.
"""

import math
from typing import Any

import torch
from torch import Tensor

from l2o.checkpoint import save_rule
from meta_train.config import to_json
from meta_train.estimators import MetaGradient
from meta_train.run_directory import RunDirectory
from meta_train.tracking import Progress
from meta_train.tree import flatten_tree, rebuild_tree
from meta_train.unroll import evaluate

_VALIDATION_SEED = 2**32
"""Added to the run's seed for the validation problems, which are the same at every validation."""


class Trainer:
    """Meta-train the rule of a run.

    Args:
        run: where to read the config and write checkpoints; continued from its state if it has one.
        progress: told of every outer step and validation.
    """

    def __init__(self, run: RunDirectory, progress: Progress):
        self.run, self.config, self.progress = run, run.config, progress
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self.rule = self.config.build_rule(self.generator)
        self.estimator = self.config.build_estimator()
        self.adam = torch.optim.Adam(self.rule.parameters(), lr=self.config.outer_lr)
        self.outer_step, self.skipped, self.best = 0, 0, math.inf
        self.stop_requested = False
        self._restart()
        self._resume()

    def train(self) -> dict[str, Any]:
        """Run to the last outer step, or until `stop_requested`; return a summary."""
        config = self.config
        while self.outer_step < config.outer_steps and not self.stop_requested:
            self._make_outer_step()
            if self.outer_step % config.validate_every == 0 or self.outer_step == config.outer_steps:
                self._validate()
            if self.outer_step % config.checkpoint_every == 0 or self.outer_step == config.outer_steps:
                self.save()
        self.save()
        return {"outer_steps": self.outer_step, "best_validation": self.best, "skipped_windows": self.skipped}

    def save(self) -> None:
        """Write checkpoints/last and the state to resume from."""
        save_rule(self.rule, self.run.checkpoints / "last", training=self._card())
        self.run.save_state(*self._pack())

    def _make_outer_step(self) -> None:
        config, begun = self.config, int(self.trajectories.step)
        if begun >= config.horizon:
            self._restart()
            begun = 0
        weights = config.meta_loss.weights(begun, min(config.truncation, config.horizon - begun), config.horizon)
        result = self.estimator.estimate(
            self.rule, config.task, self.trajectories, config.meta_loss, weights, self.generator
        )
        if begun == 0:
            self.first_losses = result.losses[0]
        usable = self._is_usable(result)
        if usable:
            self.trajectories = result.trajectories
            self._apply(result.grads)
        else:
            self.skipped += 1
            self._restart()
        self.outer_step += 1
        loss = result.losses.mean().item() if usable else math.nan
        self.progress.outer_step(self.outer_step, loss, len(weights) * config.n_tasks, self.skipped)

    def _is_usable(self, result: MetaGradient) -> bool:
        losses_fine = (result.losses <= self.config.divergence * self.first_losses.abs()).all()
        return bool(losses_fine) and all(bool(torch.isfinite(grad).all()) for grad in result.grads.values())

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
        generator = torch.Generator().manual_seed(config.seed + _VALIDATION_SEED)
        losses = evaluate(self.rule, config.task, config.valid_tasks, config.horizon, "outer_valid", generator)
        sums = losses.double().sum(0)
        sum_loss = sums.mean().item()
        if sum_loss < self.best:
            self.best = sum_loss
            results = {"outer_valid_sum_loss": sum_loss, "problems": config.valid_tasks, "horizon": config.horizon}
            save_rule(self.rule, self.run.checkpoints / "best", training=self._card(), results=results)
        self.progress.validation(self.outer_step, sum_loss, losses[-1].mean().item(), self.best)

    def _card(self) -> dict[str, Any]:
        return {"outer_step": self.outer_step, "config": to_json(self.config)}

    def _restart(self) -> None:
        self.trajectories = self.estimator.start(self.rule, self.config.task, self.config.n_tasks, self.generator)
        self.first_losses = torch.full((), math.inf)

    def _pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        loop = {"first_losses": self.first_losses, "generator": self.generator.get_state()}
        adam = {str(index): slots for index, slots in self.adam.state_dict()["state"].items()}
        trees = {"rule": dict(self.rule.state_dict()), "trajectories": self.trajectories, "loop": loop, "adam": adam}
        counters = {"outer_step": self.outer_step, "skipped": self.skipped, "best": self.best}
        tensors = {path: tensor for name, tree in trees.items() for path, tensor in flatten_tree(tree, name).items()}
        return tensors, counters | {"window": self.progress.window}

    def _resume(self) -> None:
        loaded = self.run.load_state()
        if loaded is None:
            self.run.truncate_log(0)
            return
        try:
            self._restore(*loaded)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            what = f"{self.run.path}: state.safetensors does not fit config.json ({error!r:.150})"
            raise ValueError(f"{what}; was one of them changed?") from error
        self.run.truncate_log(self.outer_step)

    def _restore(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        self.outer_step, self.skipped, self.best = (counters[name] for name in ("outer_step", "skipped", "best"))
        self.progress.window = counters["window"]

        def group(prefix):
            return {name.removeprefix(prefix + "/"): t for name, t in tensors.items() if name.startswith(prefix + "/")}

        self.rule.load_state_dict(group("rule"))
        moments = {i: group(f"adam/{i}") for i, _ in enumerate(self.rule.parameters())}
        self.adam.load_state_dict(self.adam.state_dict() | {"state": {i: m for i, m in moments.items() if m}})
        self.trajectories = rebuild_tree(self.trajectories, tensors, "trajectories")
        self.first_losses = tensors["loop/first_losses"]
        self.generator.set_state(tensors["loop/generator"])
