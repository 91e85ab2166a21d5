"""Random search over the weights of a rule that has few of them: for weights that have no gradient, such as a count.

The first round scatters candidates over a box around the start by a Sobol sequence. Every further round draws from a
normal distribution with the mean and the standard deviations of the best of the round before (the cross-entropy method,
Rubinstein 1999), so that the region shrinks. All candidates face the same problems; the best ever seen is kept.

After every round the run directory holds the best weights and everything that the next round depends on, so a resumed
search ends with bit for bit the weights of an uninterrupted one.
"""

import dataclasses
import math
import sys
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2o.checkpoint import save_rule
from l2o.rule import UpdateRule
from meta_train.config import TrainConfig
from meta_train.config_json import to_json
from meta_train.run_directory import RunDirectory
from meta_train.run_training import TrainingError, writing
from meta_train.seeds import derive_seed
from meta_train.unroll import evaluate

_MOST_WEIGHTS = 20
"""Beyond that, random search is hopeless."""


@dataclass(frozen=True)
class SearchConfig:
    """How the weights are searched; the problems are those of the run's `valid_tasks`."""

    rounds: int = 6
    """Rounds, the Sobol one included."""
    candidates: int = 12
    """Candidates of a round; the Sobol one has four times as many."""
    elite: int = 4
    """Best candidates of a round that shape the next."""
    spread: float = 0.5
    """Half the width of the first round's box, units of the weights: of a log_ weight, a factor of e^spread."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if a count or the spread is not positive, or the elite is not 2 to all candidates.
        """
        if min(self.rounds, self.candidates) < 1 or not 0 < self.spread < float("inf"):
            raise ValueError(f"rounds, candidates and spread must be positive, got {self}")
        if not 2 <= self.elite <= self.candidates:
            raise ValueError(f"elite must be from 2 to candidates ({self.candidates}), got {self.elite}")


class _Progress(NamedTuple):
    """What the next round depends on, besides the generator; weights have shape (weights,)."""

    mean: Tensor
    deviations: Tensor
    best: Tensor
    least: Tensor
    """The meta-loss of the best, shape (), float64."""


def searchable_rule(config: TrainConfig, generator: torch.Generator) -> UpdateRule:
    """Return the rule from whose weights a search starts.

    Raises:
        ValueError: if it has no weights, or too many, or gains are to be learned.
    """
    if config.learn == "gains":
        raise ValueError("gains are learned by l2o train, with --estimator pes; a search moves a rule's own weights")
    rule = config.build_rule(generator)
    count = sum(parameter.numel() for parameter in rule.parameters())
    if not 0 < count <= _MOST_WEIGHTS:
        raise ValueError(
            f"random search is for 1 to {_MOST_WEIGHTS} weights, {type(rule).__name__} has {count}; choose a rule with "
            "few, such as rule:hyperlista or rule:adam, or learn it by gradients, with l2o train"
        )
    return rule


def search(run: RunDirectory, options: SearchConfig, command: str) -> float:
    """Search a rule's weights for the least meta-loss, from where the run directory stands to the last round.

    The best weights go to checkpoints/best.

    Args:
        command: what was typed, for the card.

    Returns: the least meta-loss.

    Raises:
        ValueError: if the rule has no weights, or too many, or the state in the directory is damaged.
        TrainingError: if the run cannot be written, or no candidate had a finite meta-loss.
        KeyboardInterrupt: if the user ended it, with how it is continued.
    """
    generator = torch.Generator().manual_seed(run.config.seed)
    rule = searchable_rule(run.config, generator)
    made, seconds, progress = _resume(run, rule, options, generator)
    begun = time.process_time() - seconds
    try:
        for number in range(made, options.rounds):
            progress = _round(run.config, rule, options, number, progress, generator)
            facts = {"cpu_s": round(time.process_time() - begun, 1), **dataclasses.asdict(options)}
            with writing(run):
                _save(run, rule, progress, command, facts)
                _save_state(run, progress, generator, {"round": number + 1, "cpu_s": time.process_time() - begun})
            print(f"round {number + 1}/{options.rounds}: least meta-loss {progress.least.item():.4g}", file=sys.stderr)
    except KeyboardInterrupt:
        if not run.has_state:
            raise
        raise KeyboardInterrupt(f"stopped after a whole round; continue with: {run.continuation}") from None
    if not math.isfinite(progress.least.item()):
        raise TrainingError(
            f"nothing was found: all candidates diverged on some of the {run.config.valid_tasks} problems. Try a "
            "smaller --search.spread, a shorter --horizon, or other weights to start from (--rule.…, --start-from)"
        )
    return progress.least.item()


def _resume(
    run: RunDirectory, rule: UpdateRule, options: SearchConfig, generator: torch.Generator
) -> tuple[int, float, _Progress]:
    """Return the rounds made, the CPU seconds they took, and where the search stands."""
    start = torch.nn.utils.parameters_to_vector(rule.parameters()).detach()
    loaded = run.load_state()
    if loaded is None:
        least = _score(run.config, rule, start)
        return 0, 0.0, _Progress(start, torch.full_like(start, options.spread), start, least)
    tensors, counters = loaded
    try:
        progress = _Progress(*(tensors[name] for name in _Progress._fields))
        if progress.mean.shape != start.shape:
            raise ValueError(f"{len(progress.mean)} weights instead of {len(start)}")
        generator.set_state(tensors["generator"])
        run.truncate_log(counters["round"])
        return counters["round"], counters["cpu_s"], progress
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{run.path}: state.safetensors is not that of this search ({error!r:.150})") from error


def _round(
    config: TrainConfig,
    rule: UpdateRule,
    options: SearchConfig,
    number: int,
    progress: _Progress,
    generator: torch.Generator,
) -> _Progress:
    candidates = _draw(progress.mean, progress.deviations, options, number, generator)
    scores = torch.stack([_score(config, rule, candidate) for candidate in candidates])
    order = scores.argsort(stable=True)
    elite, best, least = candidates[order[: options.elite]], progress.best, progress.least
    if scores[order[0]] < least:
        best, least = candidates[order[0]], scores[order[0]]
    return _Progress(elite.mean(0), elite.std(0), best, least)


def _draw(mean: Tensor, deviations: Tensor, options: SearchConfig, number: int, generator: torch.Generator) -> Tensor:
    """Return the candidates of a round, shape (candidates, weights); the mean is one of them."""
    count, weights = options.candidates, len(mean)
    if number == 0:
        points = torch.quasirandom.SobolEngine(weights, scramble=True, seed=0).draw(4 * count).to(mean)
        return mean + deviations * (2 * points - 1)
    noise = torch.randn(count, weights, generator=generator)
    noise[0] = 0
    return mean + deviations * noise


@torch.no_grad()
def _score(config: TrainConfig, rule: UpdateRule, weights: Tensor) -> Tensor:
    """Return the mean meta-loss of the run's validation problems; inf where it is not a number."""
    torch.nn.utils.vector_to_parameters(weights, rule.parameters())
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "search"))
    losses = evaluate(rule, config.task, config.valid_tasks, config.horizon + 1, "outer_valid", generator).double()
    steps = config.meta_loss.weights(0, config.horizon, config.horizon).double()
    return torch.tensordot(steps, config.meta_loss.of(losses[1:]), 1).mean().nan_to_num(torch.inf, posinf=torch.inf)


def _save(run: RunDirectory, rule: UpdateRule, progress: _Progress, command: str, facts: dict[str, Any]) -> None:
    config = run.config
    torch.nn.utils.vector_to_parameters(progress.best, rule.parameters())
    training = {"command": command, "config": to_json(config), "search": facts}
    results = {"meta_loss": progress.least.item(), "problems": config.valid_tasks, "horizon": config.horizon}
    if math.isfinite(progress.least.item()):
        save_rule(rule, run.checkpoints / "best", training=training, results=results)


def _save_state(run: RunDirectory, progress: _Progress, generator: torch.Generator, counters: dict[str, Any]) -> None:
    run.log({"outer_step": counters["round"], "valid/meta_loss": progress.least.item()})
    run.save_state(progress._asdict() | {"generator": generator.get_state()}, counters)
