"""A safeguard for learned steps: a trust region around Adam's step, and Adam alone once the loss says so.

Each tensor's learned step u_t is scaled back to c times the length of the step a_t that Adam would make there:

    s_t = u_t min(1, c_t ‖a_t‖ / ‖u_t‖),   c_t = trust · clip((f_1 / f̄_t)^¾, 1, earned).

f̄_t is a running mean of the losses, f_1 the first one: a rule that has lowered the loss may take longer steps. Where f̄
rises by the factor `rise` above its least value, or finds no lower one for a while, trust is multiplied by `shrink`;
below `floor`, and at once when a loss is not finite, Adam, which has seen all gradients, takes over for the rest of
training. It starts with longer steps, to catch up with an Adam that had been alone from the beginning,

    s_t = b_t a_t,   b_t = boost, and max(1, b cool) after every further rise or stall,

that is as Adam with `boost` times the lr, and ends as Adam itself.

Sources: falling back to a method that is known to converge, Heaton et al. 2023, Safeguarded learned convex
optimization, arXiv:2003.01880; deciding by the loss, Prémont-Schwarz et al. 2022, A simple guard for learned
optimizers, arXiv:2201.12426. Differs from both: no further evaluations of the loss, which would cost what they save;
the losses of training are compared with earlier ones instead. A learned step relative to a classic one, as in Almeida
et al. 2021, arXiv:2106.00958.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guard:
    """Options of the safeguard; the defaults were chosen on the tuning problems of `meta_train.safeguard_problems`."""

    trust: float = 16.0
    """Longest learned step at first, in lengths of Adam's step (‖u‖ / ‖a‖ per tensor), > 0."""
    earned: float = 8.0
    """Greatest factor by which the limit grows as the loss falls, ≥ 1; 1 keeps it."""
    smoothing: float = 0.95
    """Decay per step of the running mean of the losses, in [0, 1)."""
    rise: float = 1.2
    """Mean loss over its least value that costs trust, > 1."""
    patience: float = 0.15
    """Share of the steps so far that may pass without a new least mean loss, > 0."""
    least_patience: int = 40
    """Steps that may pass so in any case, ≥ 1."""
    rest: int = 20
    """Steps between two losses of trust, ≥ 1: as many as the running mean needs to notice the first."""
    shrink: float = 0.25
    """Factor on trust whenever the loss rises or stalls, in (0, 1)."""
    floor: float = 4.0
    """Trust below which Adam takes over for good; 0 is never, unless a loss is not finite."""
    boost: float = 4.0
    """Factor on Adam's steps when it takes over, ≥ 1; 1 is Adam as it is, and so it is after a loss not finite."""
    cool: float = 0.7
    """Factor on the boost whenever the loss rises or stalls after that, in (0, 1)."""
    lr: float = 0.001
    """Adam's step size η, parameter units; multiplied by the group's lr, as the learned step is."""
    beta1: float = 0.9
    """Adam's β₁, in [0, 1)."""
    beta2: float = 0.999
    """Adam's β₂, in [0, 1)."""
    eps: float = 1e-8
    """Adam's ε, gradient units, > 0."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: naming the first option out of range.
        """
        for name, (allowed, text) in _RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and allowed(value)):
                raise ValueError(f"{name} must be {text}, got {value}")


_POSITIVE, _DECAY = (lambda x: x > 0, "positive and finite"), (lambda x: 0 <= x < 1, "in [0, 1)")
_COUNT = (lambda x: x >= 1, "at least 1")
_RANGES = {
    **dict.fromkeys(("trust", "patience", "lr", "eps"), _POSITIVE),
    **dict.fromkeys(("smoothing", "beta1", "beta2"), _DECAY),
    **dict.fromkeys(("least_patience", "rest", "earned", "boost"), _COUNT),
    "rise": (lambda x: x > 1, "above 1 and finite"),
    **dict.fromkeys(("shrink", "cool"), (lambda x: 0 < x < 1, "in (0, 1)")),
    "floor": (lambda x: x >= 0, "at least 0 and finite"),
}


_POWER = 0.75
"""Exponent of the growth: 1, with a limit of 4, let small convolutions go further from Adam on the tuning problems."""


class Progress(NamedTuple):
    """What the guard remembers of the losses: numbers, which `state_dict` keeps as a tuple."""

    trust: float
    """What is left of `Guard.trust`; 0 once Adam has taken over."""
    boost: float = 1.0
    """What is left of `Guard.boost`, for when Adam has taken over."""
    steps: float = 0.0
    """Losses seen."""
    first: float = math.nan
    """The first loss."""
    total: float = 0.0
    """Weighted sum of the losses; the mean is total / weight."""
    weight: float = 0.0
    """Sum of the weights of the running mean, in [0, 1)."""
    best: float = math.inf
    """Least mean since trust or boost was last lost."""
    best_at: float = 0.0
    """`steps` at that mean, or at the loss of trust or boost."""
    lost_at: float = -math.inf
    """`steps` when trust or boost was last lost."""

    @property
    def fallen_back(self) -> bool:
        """Whether Adam has taken over."""
        return self.trust == 0


def begin(guard: Guard) -> Progress:
    """Return what is known before the first loss."""
    return Progress(guard.trust, guard.boost)


def observe(guard: Guard, progress: Progress, loss: float) -> Progress:
    """Return what is known after one more loss; once Adam has taken over and has no boost, nothing changes any more."""
    if progress.fallen_back and progress.boost == 1:
        return progress
    if not math.isfinite(loss):
        return progress._replace(trust=0.0, boost=1.0)
    steps, keep = progress.steps + 1, guard.smoothing
    total, weight = keep * progress.total + (1 - keep) * loss, keep * progress.weight + (1 - keep)
    first = loss if steps == 1 else progress.first
    progress = progress._replace(steps=steps, first=first, total=total, weight=weight)
    mean = total / weight
    if mean < progress.best:
        return progress._replace(best=mean, best_at=steps)
    if steps - progress.lost_at < guard.rest or not _is_trouble(guard, progress, mean):
        return progress
    return _lose(guard, progress)._replace(best=mean, best_at=steps, lost_at=steps)


def _lose(guard: Guard, progress: Progress) -> Progress:
    """Return the progress with less trust, or, where there is none left, with less boost."""
    if progress.fallen_back:
        return progress._replace(boost=max(1.0, progress.boost * guard.cool))
    trust = progress.trust * guard.shrink
    return progress._replace(trust=trust if trust >= guard.floor else 0.0)


def _is_trouble(guard: Guard, progress: Progress, mean: float) -> bool:
    """Whether the mean loss has risen, or found no lower value for too long."""
    risen = mean - progress.best > (guard.rise - 1) * abs(progress.best)
    stalled = progress.steps - progress.best_at > max(guard.least_patience, guard.patience * progress.steps)
    # A mean of few losses is one of noise.
    return progress.steps > guard.rest and (risen or stalled)


def radius(guard: Guard, progress: Progress) -> float:
    """Return c_t, the longest learned step in lengths of Adam's; losses that are not positive earn nothing."""
    mean = progress.total / progress.weight if progress.weight else math.nan
    fallen = progress.first / mean if mean > 0 and progress.first > 0 else 1.0
    return progress.trust * min(guard.earned, max(1.0, fallen**_POWER))


def trusted(update: Tensor, reference: Tensor, norms: Tensor, radius: float) -> Tensor:
    """Return the learned step scaled back, u min(1, c ‖a‖ / ‖u‖); Adam's step where the learned one is not finite.

    Args:
        update: u, parameter units.
        reference: a, Adam's step, same shape.
        norms: ‖u‖ and ‖a‖, shape (2,); of the whole tensor, where these are a process's parts of it.
        radius: c, dimensionless.
    """
    length, limit = norms[0], radius * norms[1]
    factor = torch.where(length > limit, limit / length, 1.0)
    return torch.where(length.isfinite(), update * factor, reference)


def adam_step(guard: Guard, grad: Tensor, first: Tensor, second: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return Adam's step a_t and its next moments (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1).

        m_t = m_{t−1} + (1 − β₁) (g_t − m_{t−1})
        v_t = β₂ v_{t−1} + (1 − β₂) g_t²
        a_t = −η m̂_t / (√v̂_t + ε),   m̂_t = m_t / (1 − β₁^t),   v̂_t = v_t / (1 − β₂^t)

    Args:
        grad, first, second: g_t, m_{t−1}, v_{t−1}, shape (n,), at least float32.
        step: number of earlier steps, int64, shape ().
    """
    count = (step + 1).double()
    first = torch.lerp(first, grad, 1 - guard.beta1)
    second = torch.addcmul(guard.beta2 * second, grad, grad, value=1 - guard.beta2)
    first_hat = first / (1 - guard.beta1**count)
    second_hat = second / (1 - guard.beta2**count)
    return -guard.lr * first_hat / (second_hat.sqrt() + guard.eps), first, second
