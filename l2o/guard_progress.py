"""What a `Guard` makes of the losses: whose turn it is, how far the rule is trusted, when the weights are exchanged.

One pure function, `observe`, takes each loss in; all it remembers is a tuple of numbers.
"""

import math
from enum import IntEnum
from typing import NamedTuple

from l2o.guard import Guard

_HEAVY = 0.5
"""Weight from which a running mean counts: one of few losses is one of noise, and its least value too low."""


class Turn(IntEnum):
    """Who moves the parameters, and why."""

    AUDITION = 0
    """The rule, in its audition."""
    RIVAL = 1
    """Adam, in its own."""
    RULE = 2
    """The rule, as long as it is trusted."""
    ADAM = 3
    """Adam, for good."""


class Progress(NamedTuple):
    """What the guard remembers of the losses: numbers, which `state_dict` keeps as a tuple."""

    turn: int
    """A `Turn`."""
    trust: float
    """What is left of `Guard.trust`."""
    boost: float = 1.0
    """What is left of `Guard.boost`."""
    steps: float = 0.0
    """Losses seen."""
    began: float = 0.0
    """`steps` when the turn began."""
    exchanges: float = 0.0
    """How often the weights were exchanged with the kept ones."""
    other: float = math.inf
    """Mean loss of the kept weights, where they are the end of an audition."""
    mark: float = math.inf
    """Mean loss of the rule after the share `Guard.ahead` of its audition."""
    earned: float = 1.0
    """Factor on trust: min(grow^n, earned) of the guard."""
    total: float = 0.0
    """Weighted sum of the losses; the mean is total / weight."""
    weight: float = 0.0
    """Sum of the weights of the running mean, in [0, 1]."""
    best: float = math.inf
    """Least mean of the turn since trust or boost was last lost."""
    best_at: float = 0.0
    """`steps` at that mean, or at the loss of trust or boost."""
    lost_at: float = -math.inf
    """`steps` when trust or boost was last lost."""

    @property
    def mean(self) -> float:
        """The running mean of the losses, NaN before the first."""
        return self.total / self.weight if self.weight else math.nan

    @property
    def learned(self) -> bool:
        """Whether the rule moves the parameters."""
        return self.turn in (Turn.AUDITION, Turn.RULE)

    @property
    def fallen_back(self) -> bool:
        """Whether Adam has taken over for good."""
        return self.turn == Turn.ADAM


def begin(guard: Guard) -> Progress:
    """Return what is known before the first loss."""
    return Progress(int(Turn.AUDITION if guard.audition else Turn.RULE), guard.trust, guard.boost)


def observe(guard: Guard, progress: Progress, loss: float) -> Progress:
    """Return what is known after one more loss; `exchanges` has grown where the weights have to be exchanged now.

    Once Adam has taken over and has no boost, nothing changes any more.
    """
    if progress.fallen_back and progress.boost == 1:
        return progress
    progress = progress._replace(steps=progress.steps + 1)
    if not math.isfinite(loss):
        return _failed(guard, progress)
    keep = guard.smoothing
    total, weight = keep * progress.total + (1 - keep) * loss, keep * progress.weight + (1 - keep)
    progress = progress._replace(total=total, weight=weight)
    if progress.weight > _HEAVY and progress.mean < progress.best:
        progress = _improved(guard, progress)
    if progress.turn in (Turn.AUDITION, Turn.RIVAL):
        return _auditioned(guard, progress)
    if progress.steps - progress.lost_at < guard.rest or not _is_trouble(guard, progress):
        return progress
    return _lost(guard, progress)


def _improved(guard: Guard, progress: Progress) -> Progress:
    """Return the progress with the present mean as the least one, for which the rule earns."""
    earned = min(guard.earned, guard.grow * progress.earned) if progress.learned else progress.earned
    return progress._replace(best=progress.mean, best_at=progress.steps, earned=earned)


def _failed(guard: Guard, progress: Progress) -> Progress:
    """Return the progress after a loss that is not finite."""
    if progress.turn == Turn.RIVAL:
        return _exchanged(progress, Turn.RULE, progress.other)
    if progress.turn == Turn.ADAM or not guard.audition:
        return progress._replace(turn=int(Turn.ADAM), boost=1.0)
    return _exchanged(progress, Turn.ADAM, math.nan)


def _auditioned(guard: Guard, progress: Progress) -> Progress:
    """Return the progress in the course of an audition, and at its end."""
    played, mean = progress.steps - progress.began, progress.mean
    if progress.turn == Turn.AUDITION and played == max(1, round(guard.ahead * guard.audition)):
        progress = progress._replace(mark=mean)
    if played < guard.audition:
        return progress
    if progress.turn == Turn.AUDITION:
        return _exchanged(progress, Turn.RIVAL, math.nan)
    if max(progress.mark, progress.other) < mean:
        return _exchanged(progress, Turn.RULE, progress.other)
    return _marked(progress)._replace(turn=int(Turn.ADAM))


def _lost(guard: Guard, progress: Progress) -> Progress:
    """Return the progress with less trust, or, where Adam moves, with less boost."""
    if progress.fallen_back:
        return _marked(progress)._replace(boost=max(1.0, progress.boost * guard.cool))
    if progress.mean > progress.other:
        return _exchanged(progress, Turn.ADAM, math.nan)
    trust = progress.trust * guard.shrink
    turn = Turn.RULE if trust >= guard.floor else Turn.ADAM
    return _marked(progress)._replace(trust=trust, turn=int(turn))


def _exchanged(progress: Progress, turn: Turn, mean: float) -> Progress:
    """Return the progress after the weights were exchanged with those kept, whose mean loss, if known, is `mean`."""
    total, weight = (0.0, 0.0) if math.isnan(mean) else (mean, 1.0)
    best = math.inf if math.isnan(mean) else mean
    new = progress._replace(turn=int(turn), began=progress.steps, exchanges=progress.exchanges + 1)
    new = new._replace(other=progress.mean, total=total, weight=weight, best=best)
    return new._replace(best_at=progress.steps, lost_at=progress.steps)


def _marked(progress: Progress) -> Progress:
    """Return the progress with the present mean as the least one."""
    return progress._replace(best=progress.mean, best_at=progress.steps, lost_at=progress.steps)


def _is_trouble(guard: Guard, progress: Progress) -> bool:
    """Whether the mean loss has risen, or found no lower value for too long."""
    risen = progress.mean - progress.best > (guard.rise - 1) * abs(progress.best)
    stalled = progress.steps - progress.best_at > max(guard.least_patience, guard.patience * progress.steps)
    return progress.steps > guard.rest and (risen or stalled)


def radius(progress: Progress) -> float:
    """Return c_t, the longest learned step in lengths of Adam's."""
    return progress.trust * progress.earned
