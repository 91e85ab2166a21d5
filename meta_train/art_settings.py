"""What the neural-art benchmark runs: pairs of photograph and painting, steps, and where tuning begins."""

from dataclasses import dataclass

import torch

from meta_train.seeds import derive_seed
from tasks import NeuralArt
from tasks.task import Data, Split

BASE = 64
"""Height and width on which the rule was trained, pixels."""
TRAINED_STYLE = "starry_night_google"
NEW_STYLES = ("the_scream", "composition_vii")
LEARNED = ("sobolev-adam-neural-art", "sobolev-lstm-neural-art", "scheduled-adam-neural-art", "lstm-neural-art")
"""Shipped rules that take part; the last two are the first two without the filter."""
SEED = 2026
"""Seed of the pairs; training has other seeds and other photographs."""
DRAWN = 64
"""Pairs that are drawn, of which a setting takes the first ones: the same however many it takes."""


def family(size: int, styles: tuple[str, ...]) -> NeuralArt:
    """Return pictures of a size, the weights of the loss scaled as if its terms were sums over pixels.

    The terms are means, so that a pixel's gradient shrinks as the number of pixels grows; Gatys et al. and
    Andrychowicz et al. sum. A factor moves no minimum and cannot matter to a classic, whose lr is tuned.
    """
    weights = NeuralArt()
    factor = (size / BASE) ** 2
    return NeuralArt(
        size, styles, "art",
        content_weight=factor * weights.content_weight,
        style_weight=factor * weights.style_weight,
        variation_weight=factor * weights.variation_weight,
    )  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One panel of the figure."""

    family: NeuralArt
    pairs: int
    """Test pairs, of the photographs of the test split."""
    steps: int
    tuning_pairs: int
    """Pairs of outer_valid photographs, on which learning rates are chosen."""
    methods: tuple[str, ...]
    """Classics that take part, besides the learned rules."""
    shown: int = 1
    """Pairs on the contact sheet."""

    @property
    def factor(self) -> float:
        """By what the loss is larger than that of the default weights."""
        return (self.family.size / BASE) ** 2

    def tasks(self, split: Split) -> Data:
        """Return the pairs of a split, test or outer_valid."""
        generator = torch.Generator().manual_seed(derive_seed(SEED, f"{split} {self.family.size}"))
        n_pairs = self.pairs if split == "test" else self.tuning_pairs
        return {name: tensor[:n_pairs] for name, tensor in self.family.sample_tasks(DRAWN, generator).items()}


CONTROL = "Adam, filtered"
"""Adam with a tuned learning rate and the default filter of `SobolevAdam`, fixed: what comes without learning."""
_ALL = ("SGD", "momentum", "NAG", "RMSprop", "Adam", "L-BFGS", CONTROL)
SETTINGS: dict[str, Setting] = {
    "training style, 64×64": Setting(family(64, (TRAINED_STYLE,)), 24, 128, 8, _ALL),
    "new styles, 128×128": Setting(family(128, NEW_STYLES), 20, 128, 4, _ALL, shown=2),
    "new styles, 256×256": Setting(family(256, NEW_STYLES), 20, 500, 2, ("Adam",)),
}

COUNTS = (16, 32, 64, 128)
"""Numbers of steps that the tables show, besides the last."""
STARTS = {"SGD": 0.3162, "momentum": 0.2, "NAG": 0.2, "RMSprop": 0.01, "Adam": 0.03, CONTROL: 0.2}
"""Learning rates at which tuning begins, for the loss as `family` scales it."""
LBFGS_OPTIONS = tuple((lr, history) for lr in (0.3, 1.0, 3.0) for history in (10, 50))
"""Step lengths that the line search tries first, in torch's units, and numbers of remembered steps."""
SHOWN_STEP = 128
"""Steps after which the contact sheet shows the pictures."""
