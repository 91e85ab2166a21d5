"""Meta-gradient estimators, one per file."""

from meta_train.estimators.es import ES
from meta_train.estimators.estimator import Estimator, MetaGradient, MetaLoss
from meta_train.estimators.nres import NRES
from meta_train.estimators.pes import PES
from meta_train.estimators.recorded import Recorded
from meta_train.estimators.truncated import Truncated

ESTIMATORS: dict[str, type[Estimator]] = {
    "recorded": Recorded,
    "truncated": Truncated,
    "es": ES,
    "pes": PES,
    "nres": NRES,
}
"""Name -> estimator, a dataclass whose fields are options of `TrainConfig`."""

__all__ = ["ES", "ESTIMATORS", "NRES", "PES", "Estimator", "MetaGradient", "MetaLoss", "Recorded", "Truncated"]
