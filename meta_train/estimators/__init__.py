"""Meta-gradient estimators, one per file."""

from meta_train.estimators.es import ES
from meta_train.estimators.estimator import Estimator, MetaGradient, MetaLoss
from meta_train.estimators.nres import NRES
from meta_train.estimators.pes import PES
from meta_train.estimators.recorded import Recorded
from meta_train.estimators.truncated import Truncated

__all__ = ["ES", "NRES", "PES", "Estimator", "MetaGradient", "MetaLoss", "Recorded", "Truncated"]
