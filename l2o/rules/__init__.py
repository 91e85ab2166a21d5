"""Update rules, one method per file."""

from l2o.rule import ModelBasedRule, UpdateRule
from l2o.rules.adam import Adam, AdamConfig
from l2o.rules.admm import ADMM, ADMMConfig
from l2o.rules.alista import ALISTA, ALISTAConfig
from l2o.rules.amp import AMP, AMPConfig
from l2o.rules.condat_vu import CondatVu, CondatVuConfig
from l2o.rules.d_ladmm import DLADMM, DLADMMConfig
from l2o.rules.firm_alista import FirmALISTA, FirmALISTAConfig
from l2o.rules.fista import FISTA, FISTAConfig
from l2o.rules.gkm import GKM, GKMConfig, NumericalPart
from l2o.rules.gkm_accelerated import AcceleratedALM, AccelerationConfig
from l2o.rules.gkm_admm import ProximalADMM
from l2o.rules.gkm_alm import LinearizedALM, Spectrum
from l2o.rules.gkm_gradient import PreconditionedProximalGradient, ProximalGradient
from l2o.rules.gkm_primal_dual import PrimalDual
from l2o.rules.gkm_proximal_alm import ProximalALM
from l2o.rules.glista import GLISTA, GLISTAConfig
from l2o.rules.hyperlista import HyperLISTA, HyperLISTAConfig
from l2o.rules.ista import ISTA, ISTAConfig
from l2o.rules.ladmm import LADMM, LADMMConfig
from l2o.rules.lamp import LAMP, LAMPConfig
from l2o.rules.lfista import LFISTA, LFISTAConfig
from l2o.rules.lista import LISTA, LISTAConfig
from l2o.rules.lista_cp import LISTACP, LISTACPConfig
from l2o.rules.lista_cpss import LISTACPSS, LISTACPSSConfig
from l2o.rules.lstm import TENSORFLOW, CoordinatewiseLSTM, LSTMConfig
from l2o.rules.momentum import Momentum, MomentumConfig
from l2o.rules.na_alista import NAALISTA, NAALISTAConfig
from l2o.rules.niht import NIHT, NIHTConfig
from l2o.rules.proximal_lstm import ProximalLSTM, ProximalLSTMConfig
from l2o.rules.rmsprop import RMSprop, RMSpropConfig
from l2o.rules.safeguarded import Safeguarded, SafeguardedConfig, acceptance_rate
from l2o.rules.scheduled_adam import ScheduledAdam, ScheduledAdamConfig
from l2o.rules.sgd import SGD, SGDConfig
from l2o.rules.sobolev import SobolevAdam, SobolevAdamConfig, SobolevLSTM, SobolevLSTMConfig, SobolevRule
from l2o.rules.steplista import StepLISTA, StepLISTAConfig
from l2o.rules.support_newton import SupportNewton, SupportNewtonConfig
from l2o.rules.tilista import TiLISTA, TiLISTAConfig

RULES: dict[str, tuple[type[UpdateRule], type]] = {
    "sgd": (SGD, SGDConfig),
    "momentum": (Momentum, MomentumConfig),
    "rmsprop": (RMSprop, RMSpropConfig),
    "adam": (Adam, AdamConfig),
    "scheduled-adam": (ScheduledAdam, ScheduledAdamConfig),
    "sobolev-adam": (SobolevAdam, SobolevAdamConfig),
    "lstm": (CoordinatewiseLSTM, LSTMConfig),
    "sobolev-lstm": (SobolevLSTM, SobolevLSTMConfig),
}
"""Name -> (rule, its config), for checkpoints and the command line. A new rule joins by adding one line."""

MODEL_BASED: dict[str, tuple[type[ModelBasedRule], type]] = {
    "ista": (ISTA, ISTAConfig),
    "fista": (FISTA, FISTAConfig),
    "amp": (AMP, AMPConfig),
    "niht": (NIHT, NIHTConfig),
    "admm": (ADMM, ADMMConfig),
    "condat-vu": (CondatVu, CondatVuConfig),
    "alista": (ALISTA, ALISTAConfig),
    "firm-alista": (FirmALISTA, FirmALISTAConfig),
    "hyperlista": (HyperLISTA, HyperLISTAConfig),
    "glista": (GLISTA, GLISTAConfig),
    "lamp": (LAMP, LAMPConfig),
    "lfista": (LFISTA, LFISTAConfig),
    "lista": (LISTA, LISTAConfig),
    "lista-cp": (LISTACP, LISTACPConfig),
    "lista-cpss": (LISTACPSS, LISTACPSSConfig),
    "na-alista": (NAALISTA, NAALISTAConfig),
    "support-newton": (SupportNewton, SupportNewtonConfig),
    "proximal-lstm": (ProximalLSTM, ProximalLSTMConfig),
    "steplista": (StepLISTA, StepLISTAConfig),
    "tilista": (TiLISTA, TiLISTAConfig),
}
"""The same for rules that step on the structure of a problem."""

CONSTRAINED: dict[str, tuple[type[ModelBasedRule], type]] = {
    "ladmm": (LADMM, LADMMConfig),
    "d-ladmm": (DLADMM, DLADMMConfig),
}
"""The same for a `ConstrainedProblem`; in checkpoints only, for the command line has no such family of problems."""

__all__ = [
    "CONSTRAINED",
    "DLADMM",
    "DLADMMConfig",
    "GKM",
    "GKMConfig",
    "LADMM",
    "LADMMConfig",
    "AcceleratedALM",
    "AccelerationConfig",
    "LinearizedALM",
    "NumericalPart",
    "PreconditionedProximalGradient",
    "PrimalDual",
    "ProximalADMM",
    "ProximalALM",
    "ProximalGradient",
    "Spectrum",
    "FirmALISTA",
    "FirmALISTAConfig",
    "Safeguarded",
    "SafeguardedConfig",
    "SupportNewton",
    "SupportNewtonConfig",
    "acceptance_rate",
    "HyperLISTA",
    "HyperLISTAConfig",
    "GLISTA",
    "GLISTAConfig",
    "LAMP",
    "LAMPConfig",
    "LFISTA",
    "LFISTAConfig",
    "LISTA",
    "LISTAConfig",
    "LISTACP",
    "LISTACPConfig",
    "LISTACPSS",
    "LISTACPSSConfig",
    "NAALISTA",
    "NAALISTAConfig",
    "ProximalLSTM",
    "ProximalLSTMConfig",
    "StepLISTA",
    "StepLISTAConfig",
    "TiLISTA",
    "TiLISTAConfig",
    "ADMM",
    "ALISTA",
    "AMP",
    "FISTA",
    "ISTA",
    "MODEL_BASED",
    "NIHT",
    "RULES",
    "SGD",
    "TENSORFLOW",
    "ADMMConfig",
    "ALISTAConfig",
    "AMPConfig",
    "Adam",
    "AdamConfig",
    "CondatVu",
    "CondatVuConfig",
    "CoordinatewiseLSTM",
    "FISTAConfig",
    "ISTAConfig",
    "LSTMConfig",
    "Momentum",
    "MomentumConfig",
    "NIHTConfig",
    "RMSprop",
    "RMSpropConfig",
    "SGDConfig",
    "ScheduledAdam",
    "ScheduledAdamConfig",
    "SobolevAdam",
    "SobolevAdamConfig",
    "SobolevLSTM",
    "SobolevLSTMConfig",
    "SobolevRule",
]
