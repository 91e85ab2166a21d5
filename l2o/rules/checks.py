"""Range checks that the rules' configs share."""

import math


def check_positive(**values: float) -> None:
    """Check that every value is positive and finite.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def check_decay(**values: float) -> None:
    """Check that every value lies strictly between 0 and 1, where its logit is finite.

    Raises:
        ValueError: naming the first that does not.
    """
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}")
