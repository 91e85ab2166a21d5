"""What the configs of rules with matrix weights share: options that come first, and their checks."""

from dataclasses import dataclass

from l2o.rules.checks import check_positive
from l2o.rules.support import Start, check_layers, check_sizes, check_start


@dataclass(frozen=True)
class MatrixConfig:
    """The size of A and the number of layers; abstract: every rule has a config of its own."""

    rows: int = 250
    """Of A."""
    columns: int = 500
    """Of A."""
    layers: int = 16
    """Steps with weights of their own."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if a size is below 1.
        """
        check_layers(self.layers)
        check_sizes(self.rows, self.columns)


@dataclass(frozen=True)
class StartConfig(MatrixConfig):
    """The same of the LISTA rules whose layers start as steps of ISTA or ALISTA; abstract."""

    tied: bool = False
    """The same matrices in all layers; the scalars stay per layer."""
    start: Start = "ista"
    """What every layer starts as: an ISTA step, or one of ALISTA, in both with the rule's own support selection."""
    strength: float = 0.1
    """λ of that ISTA."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if a size is below 1, the strength is not positive, or the start is unknown.
        """
        super().__post_init__()
        check_positive(strength=self.strength)
        check_start(self.start)
