"""Update rules, one method per file."""

from l2o.rule import ModelBasedRule, UpdateRule
from l2o.rules.adam import Adam, AdamConfig
from l2o.rules.ista import ISTA, ISTAConfig
from l2o.rules.lstm import TENSORFLOW, CoordinatewiseLSTM, LSTMConfig
from l2o.rules.momentum import Momentum, MomentumConfig
from l2o.rules.rmsprop import RMSprop, RMSpropConfig
from l2o.rules.sgd import SGD, SGDConfig

RULES: dict[str, tuple[type[UpdateRule], type]] = {
    "sgd": (SGD, SGDConfig),
    "momentum": (Momentum, MomentumConfig),
    "rmsprop": (RMSprop, RMSpropConfig),
    "adam": (Adam, AdamConfig),
    "lstm": (CoordinatewiseLSTM, LSTMConfig),
}
"""Name -> (rule, its config), for checkpoints and the command line. A new rule joins by adding one line."""

MODEL_BASED: dict[str, tuple[type[ModelBasedRule], type]] = {
    "ista": (ISTA, ISTAConfig),
}
"""The same for rules that step on the structure of a problem."""

__all__ = [
    "ISTA",
    "MODEL_BASED",
    "RULES",
    "SGD",
    "TENSORFLOW",
    "Adam",
    "AdamConfig",
    "CoordinatewiseLSTM",
    "ISTAConfig",
    "LSTMConfig",
    "Momentum",
    "MomentumConfig",
    "RMSprop",
    "RMSpropConfig",
    "SGDConfig",
]
