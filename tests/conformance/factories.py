"""The optimizers that the suite runs on when it is not told others."""

import l2o
from l2o.rules import Adam, AdamConfig


def lstm(params, lr):
    """A shipped learned optimizer."""
    return l2o.load("lstm-digits", params, lr)


def adam(params, lr):
    """A classic as a rule in the learned optimizer's shell."""
    return l2o.LearnedOptimizer(params, Adam(AdamConfig(lr=1.0)), lr)


def guarded(params, lr):
    """A shipped learned optimizer with its guard, whose Adam takes steps that bfloat16 does not round away."""
    return l2o.load("lstm-digits", params, lr, guard=l2o.Guard(lr=0.05))
