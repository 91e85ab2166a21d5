"""Random search over the weights of a rule that has few of them: for weights that have no gradient, such as a count.

The first round scatters candidates over a box around the start by a Sobol sequence. Every further round draws from a
normal distribution with the mean and the standard deviations of the best of the round before (the cross-entropy method,
Rubinstein 1999), so that the region shrinks. All candidates face the same problems; the best ever seen is kept.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2o.checkpoint import save_rule
from l2o.rule import UpdateRule
from meta_train.config import TrainConfig
from meta_train.config_json import to_json
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


def search(config: TrainConfig, options: SearchConfig, out: Path, command: str) -> float:
    """Search a rule's weights for the least meta-loss and save the best to checkpoints/best in `out`.

    Args:
        command: what was typed, for the card.

    Returns: the least meta-loss.

    Raises:
        ValueError: if the rule has no weights, or too many.
    """
    begun = time.process_time()
    generator = torch.Generator().manual_seed(config.seed)
    rule = config.build_rule(generator)
    start = torch.nn.utils.parameters_to_vector(rule.parameters()).detach()
    if not 0 < len(start) <= _MOST_WEIGHTS:
        raise ValueError(f"random search is for 1 to {_MOST_WEIGHTS} weights, {type(rule).__name__} has {len(start)}")
    best, least = start, _score(config, rule, start)
    mean, deviations = start, torch.full_like(start, options.spread)
    for number in range(options.rounds):
        candidates = _draw(mean, deviations, options, number, generator)
        scores = torch.stack([_score(config, rule, candidate) for candidate in candidates])
        order = scores.argsort()
        elite = candidates[order[: options.elite]]
        if scores[order[0]] < least:
            best, least = candidates[order[0]], scores[order[0]]
        mean, deviations = elite.mean(0), elite.std(0)
        print(f"round {number + 1}/{options.rounds}: least meta-loss {least.item():.4g}", file=sys.stderr)
    facts = {"cpu_s": round(time.process_time() - begun, 1), **dataclasses.asdict(options)}
    _save(config, rule, best, least.item(), out, command, facts)
    return least.item()


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
    return torch.tensordot(steps, losses[1:], 1).mean().nan_to_num(torch.inf)


def _save(
    config: TrainConfig, rule: UpdateRule, best: Tensor, least: float, out: Path, command: str, facts: dict[str, Any]
) -> None:
    torch.nn.utils.vector_to_parameters(best, rule.parameters())
    training = {"command": command, "config": to_json(config), "search": facts}
    results = {"meta_loss": least, "problems": config.valid_tasks, "horizon": config.horizon}
    save_rule(rule, out / "checkpoints" / "best", training=training, results=results)
