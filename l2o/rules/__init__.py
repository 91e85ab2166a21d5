"""Update rules, one method per file."""

from l2o.rule import UpdateRule
from l2o.rules.adam import Adam, AdamConfig
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

__all__ = [
    "RULES",
    "SGD",
    "TENSORFLOW",
    "Adam",
    "AdamConfig",
    "CoordinatewiseLSTM",
    "LSTMConfig",
    "Momentum",
    "MomentumConfig",
    "RMSprop",
    "RMSpropConfig",
    "SGDConfig",
]
