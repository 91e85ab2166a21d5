"""Meta-gradient estimators, one per file."""

from meta_train.estimators.estimator import Estimator, MetaGradient, MetaLoss
from meta_train.estimators.recorded import Recorded
from meta_train.estimators.truncated import Truncated

__all__ = ["Estimator", "MetaGradient", "MetaLoss", "Recorded", "Truncated"]
