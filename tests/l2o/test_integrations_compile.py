"""`torch.compile` around `step`: one graph where gradients are not checked, the same numbers in any case."""

import pytest
import torch
from small_models import mlp

from l2o import LearnedOptimizer
from l2o.rules import Adam, CoordinatewiseLSTM, LSTMConfig

# importing the compiler makes torch warn about itself
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
RULES = {"adam": lambda: Adam(), "lstm": lambda: CoordinatewiseLSTM(LSTMConfig(), torch.Generator().manual_seed(0))}


def trained(rule, compiler=None, **options):
    """Parameters after some steps with a decaying lr, eager or compiled; two tensors get their gradients late."""
    model, inputs, targets = mlp()
    lr = torch.tensor(0.5)
    optimizer = LearnedOptimizer(model.parameters(), rule, lr, weight_decay=0.01, **options)
    step = optimizer.step if compiler is None else torch.compile(optimizer.step, **compiler)
    for index in range(6):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        if index < 2:
            model[0].weight.grad = model[2].bias.grad = None
        step()
        lr *= 0.9  # by hand: torch does not trace a step that a scheduler has wrapped
    torch.compiler.reset()
    return torch.cat([param.detach().flatten() for param in model.parameters()])


@pytest.mark.parametrize(("name", "state_dtype"), [("adam", None), ("lstm", torch.bfloat16)])
def test_compiled_step_gives_the_numbers_of_the_eager_one(name, state_dtype):
    compiled = trained(RULES[name](), {"backend": "eager"}, state_dtype=state_dtype)
    torch.testing.assert_close(compiled, trained(RULES[name](), state_dtype=state_dtype), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", RULES)
def test_step_that_does_not_look_at_gradients_is_one_graph(name):
    compiled = trained(RULES[name](), {"backend": "eager", "fullgraph": True}, nonfinite="pass")
    torch.testing.assert_close(compiled, trained(RULES[name]()), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_inductor_gives_the_numbers_of_the_eager_step(name):
    compiled = trained(RULES[name](), {"fullgraph": True}, nonfinite="pass")
    torch.testing.assert_close(compiled, trained(RULES[name]()), rtol=1e-4, atol=1e-6)
