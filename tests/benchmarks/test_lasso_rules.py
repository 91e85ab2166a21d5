"""Time of a batch of LASSO problems: FISTA with restart, and a safeguarded rule; pytest --benchmark-only."""

import pytest
import torch

from l2o import solve
from l2o.rules import FISTA, FirmALISTA, Safeguarded
from tasks import Lasso


@pytest.mark.parametrize("rule, steps", [(FISTA(), 50), (Safeguarded(None), 50), (Safeguarded(FirmALISTA()), 4)])
def test_lasso(benchmark, rule, steps):
    family = Lasso()
    made = family.problem(family.sample_tasks(250, torch.Generator().manual_seed(0)))
    solution = benchmark(solve, rule, made, steps=steps, history=False)
    assert solution.certificate.primal.isfinite().all()
