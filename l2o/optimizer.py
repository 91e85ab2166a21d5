"""The shell that makes every gradient rule a `torch.optim.Optimizer`. It holds no mathematics of its own."""

import copy

import torch
from torch import Tensor

from l2o.rule import CoordinatewiseRule, UpdateRule, accumulator


class LearnedOptimizer(torch.optim.Optimizer):
    """A rule as a drop-in replacement for `torch.optim.Adam`: θ ← θ + lr · u_t.

    Args:
        params: parameters, named parameters or parameter groups.
        rule: the update rule; copied, frozen and moved to the parameters' device.
        lr: multiplies the rule's update, dimensionless; per group.

    Raises:
        ValueError: if lr is negative or not finite.
        TypeError: if the rule is not a gradient rule.
    """

    def __init__(self, params, rule: UpdateRule, lr: float = 1.0):
        if not isinstance(rule, CoordinatewiseRule):
            raise TypeError(
                f"{type(rule).__name__} is not a gradient rule; LearnedOptimizer needs a CoordinatewiseRule"
            )
        super().__init__(params, {"lr": lr})
        devices = [param.device for group in self.param_groups for param in group["params"]]
        self.rule = copy.deepcopy(rule).requires_grad_(False).to(devices[0] if devices else "cpu")

    def add_param_group(self, param_group) -> None:
        """Add parameters, at any time.

        Raises:
            ValueError: if the group's lr is negative or not finite.
        """
        lr = param_group.get("lr", self.defaults["lr"])
        if not 0 <= lr < float("inf"):
            raise ValueError(f"lr must be a finite number of at least 0, got {lr}")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure=None):  # pyright: ignore[reportIncompatibleMethodOverride] (the base class overloads it)
        """Make one update; returns the closure's loss, evaluated with gradients enabled, if one is given.

        Raises:
            RuntimeError: if a gradient is sparse or complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group["lr"])
        return loss

    def _update(self, param: Tensor, grad: Tensor, lr: float) -> None:
        if grad.is_sparse or grad.is_complex():
            raise RuntimeError("LearnedOptimizer needs dense real gradients; got a sparse or complex one")
        memory = self.state[param]
        flat = accumulator(grad).reshape(-1)
        if not memory:
            memory["step"] = torch.zeros((), dtype=torch.int64, device=param.device)
            memory.update(self.rule.init_coordinates(flat)._asdict())
        step = memory["step"]
        # The state's type is asked for with no coordinates: a NamedTuple in `self.state` would break load_state_dict.
        state_type = type(self.rule.init_coordinates(flat[:0]))
        before = state_type(*(memory[name] for name in state_type._fields))
        updates, state = self.rule.update_(flat, before, step)
        param.add_((lr * updates).reshape(param.shape))  # adds in the wider dtype, rounds once
        memory.update(step=step + 1, **state._asdict())

    def __getstate__(self):
        """Copy and pickle the rule too; the base class lists only what it knows."""
        return super().__getstate__() | {"rule": self.rule}

    def load_state_dict(self, state_dict) -> None:
        """Restore the state; unlike the base class, keep the saved dtypes (float32 memory of bfloat16 parameters)."""
        super().load_state_dict(state_dict)
        saved_order = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(saved_order, params, strict=True):
            if index in state_dict["state"]:
                saved = state_dict["state"][index]
                self.state[param] = {name: value.to(param.device, copy=True) for name, value in saved.items()}
