"""A safeguard for learned steps: an audition against Adam, a trust region, and Adam when the losses ask for it.

Audition. The learned rule makes the first `audition` steps; then the weights go back to where they began, and Adam, its
step `boost` times as long, has as many. The rule goes on, from where it stopped, if it got further in a share `ahead`
of its steps than Adam in all of them: if its mean loss at that step, and at its end, is below Adam's at the end.
Otherwise Adam simply goes on: of the rule nothing is left in its weights or moments, so that a foreign network is
trained as by an Adam that lost `audition` steps.

Trust region. Each tensor's learned step u_t is scaled back to c times the length of the step a_t of Adam:

    s_t = u_t min(1, c_t ‖a_t‖ / ‖u_t‖),   c_t = trust · min(grow^n_t, earned).

n_t counts the steps of the rule that brought the running mean f̄ of the losses below all its values since trust was
last lost: a rule that goes on lowering the loss may take longer steps. Neither n_t nor the audition asks by how much,
so that a floor under the loss (smoothed or wrong labels), its unit or its sign hardly matter. Where f̄ rises by the
factor `rise` above its least value, or finds no lower one for a while, trust is multiplied by `shrink`.

Fall-back. Below `floor` Adam takes over for the rest of training, from where the rule is. Where trust is lost while f̄
is above the mean at the end of Adam's audition, or a loss is not finite, it does so at once, from the weights of that
end. While Adam moves alone every further rise or stall multiplies the boost by `cool`, down to 1, which is Adam itself.

Limit. Only parameters go back, not a module's buffers. The running means of BatchNorm, which evaluation uses, forget
the other weights by themselves, by 0.9 a step: after 50 steps half a percent is left; with momentum=None, more.

Sources: falling back to a method that is known to converge, Heaton et al. 2023, Safeguarded learned convex
optimization, arXiv:2003.01880; deciding by the loss, Prémont-Schwarz et al. 2022, A simple guard for learned
optimizers, arXiv:2201.12426. Differs from both: no further evaluations of the loss in every step; the audition is paid
once, and later losses are compared with earlier ones. A learned step relative to a classic one, as in Almeida et al.
2021, arXiv:2106.00958.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guard:
    """Options of the safeguard; `meta_train.safeguard_seen` tells how the defaults were chosen."""

    audition: int = 100
    """Steps of the rule, then of Adam from the same weights, before one of them is chosen; 0 is no audition, ≥ 0."""
    ahead: float = 0.7
    """The rule goes on if this share of the steps brings it below where Adam gets with all, in (0, 1)."""
    trust: float = 16.0
    """Longest learned step at first, in lengths of Adam's step (‖u‖ / ‖a‖ per tensor), > 0."""
    earned: float = 8.0
    """Greatest factor by which the limit grows while the loss falls, ≥ 1; 1 keeps it."""
    grow: float = 1.01
    """Factor by which it grows at every new least mean loss, ≥ 1."""
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
    """Factor on Adam's steps when it moves alone, ≥ 1; 1 is Adam as it is."""
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
    **dict.fromkeys(("least_patience", "rest", "earned", "grow", "boost"), _COUNT),
    "audition": (lambda x: x >= 0, "at least 0"),
    "rise": (lambda x: x > 1, "above 1 and finite"),
    **dict.fromkeys(("ahead", "shrink", "cool"), (lambda x: 0 < x < 1, "in (0, 1)")),
    "floor": (lambda x: x >= 0, "at least 0 and finite"),
}


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
