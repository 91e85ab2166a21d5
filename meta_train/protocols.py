"""Frozen benchmark protocols: which problems, how many, how long. A new one joins by adding one entry."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from l2o.rule import UpdateRule
from l2o.rules import FISTA, ISTA, FISTAConfig
from tasks import MLP, Lasso, Quadratic
from tasks.task import TaskFamily


@dataclass(frozen=True)
class Protocol:
    """One benchmark: every method runs on the same problems and minibatches of every setting."""

    name: str
    question: str
    settings: dict[str, TaskFamily]
    """Problem families by name; the first is the one that the learned rules were trained on."""
    learned: tuple[str, ...]
    """Shipped checkpoints that take part."""
    problems: int
    """Test problems (seeds) per setting, drawn from the test split."""
    tuning_problems: int
    """Other problems, drawn from the outer_valid split, on which the learning rates of the classics are tuned."""
    published: tuple[str, ...] = ()
    """Published TensorFlow weights that take part where $L2O_DATA/checkpoints has them."""
    solvers: Mapping[str, UpdateRule] = field(default_factory=dict)
    """Rules without anything to tune or to learn, by name, that use the problem's structure."""
    relative: bool = False
    """Report (f − f*) / mean f* instead of f; for families whose problems can be solved exactly."""
    sum_steps: int = 100
    """The score is the sum of the losses at θ_0 … θ_{sum_steps − 1}; the learning rates minimise its mean."""
    steps: int = 100
    """Length of the curves; final_loss is the mean loss of the last ten of them."""
    note: str = ""
    """What a reader of the numbers must know besides."""
    seed: int = 2016
    """Seed of the problems; tuning uses another."""


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="quadratic",
            question="Does the LSTM beat tuned classics on random 10-dimensional quadratics?",
            settings={
                "normal, start 0": Quadratic(),
                "normal, start N(0, 1)": Quadratic(start="normal"),
                "uniform, start 0": Quadratic(distribution="uniform"),
            },
            learned=("lstm-quadratic",),
            problems=4096,
            tuning_problems=4096,
            note="The sums are heavy-tailed: at the learning rates chosen here SGD, momentum and NAG diverge on one "
            "problem in tens of thousands, none of which is among these. Look at the median, too.",
        ),
        Protocol(
            name="mnist",
            question="Does an LSTM trained for 100 steps on a 784-20-10 MLP win there, later, and on other networks?",
            settings={
                "20 sigmoid units": MLP("mnist"),
                "40 sigmoid units": MLP("mnist", hidden=(40,)),
                "2 × 20 sigmoid units": MLP("mnist", hidden=(20, 20)),
                "20 ReLU units": MLP("mnist", activation="relu"),
            },
            learned=("lstm-mnist",),
            published=("dm", "dm_cl_il"),
            problems=48,
            tuning_problems=12,
            steps=200,
            seed=2026,  # problems of the default seed were looked at while the recipe of lstm-mnist was found
        ),
        Protocol(
            name="digits",
            question="Does an LSTM trained in two minutes beat tuned classics on held-out scans of digits?",
            settings={"20 sigmoid units": MLP("digits")},
            learned=("lstm-digits",),
            problems=32,
            tuning_problems=16,
        ),
        Protocol(
            name="lasso",
            question="How close do rules without a layer of their own for every step come to small LASSO optima?",
            settings={
                "25 × 50": Lasso(25, 50, strength=0.005, dictionary="sampled"),
                "5 × 10": Lasso(5, 10, strength=0.005, dictionary="sampled"),
                "25 × 50, λ = 0.05": Lasso(25, 50, strength=0.05, dictionary="sampled"),
            },
            learned=("lstm-lasso", "proximal-lstm-lasso"),
            solvers={"ISTA": ISTA(), "FISTA, restarted": FISTA(FISTAConfig(restart="gradient"))},
            relative=True,
            problems=256,
            tuning_problems=64,
            sum_steps=1000,
            steps=1001,
        ),
    )
}
