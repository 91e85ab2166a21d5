"""A coordinate-wise rule's stepper makes the steps of `update`."""

import pytest
import torch


@pytest.mark.parametrize("start", [0, 3])
def test_steps_of_every_rule_equal_update(coordinatewise_rule, start, generator):
    rule = coordinatewise_rule
    state = rule.init_coordinates(torch.zeros(7))
    with torch.no_grad():
        for _ in range(start):
            state = rule.update(torch.randn(7, generator=generator), state, torch.tensor(0))[1]
        advance = rule.stepper(type(state)(*(tensor.clone() for tensor in state)))
        for t in range(start, start + 4):
            grads, step = torch.randn(7, generator=generator), torch.tensor(t)
            expected, state = rule.update(grads, state, step)
            updates, now = advance(grads, step)
            torch.testing.assert_close(updates, expected, rtol=1e-12, atol=1e-14)
            for found, right in zip(now, state, strict=True):
                torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-14)
