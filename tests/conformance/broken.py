"""Optimizers that break one clause of the contract each, as published ones do; `Correct` breaks none."""

import torch


class Correct(torch.optim.Optimizer):
    """Gradient descent with momentum."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        return self.make_step(closure)

    def make_step(self, closure):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    if param.grad.is_sparse:
                        raise RuntimeError("sparse gradients are not supported")
                    self.update(param, param.grad, group)
        return loss

    def update(self, param, grad, group):
        param.sub_(self.momentum(param, grad), alpha=group["lr"])

    def momentum(self, param, grad):
        memory = self.state[param]
        if not memory:
            memory["momentum"] = torch.zeros_like(param)
        return memory["momentum"].mul_(0.5).add_(grad)


class NeverCallsTheClosure(Correct):
    def make_step(self, closure):
        return super().make_step(None)


class DropsTheLoss(Correct):
    def make_step(self, closure):
        super().make_step(closure)


class CallsTheClosureWithoutGradients(Correct):
    def make_step(self, closure):
        loss = closure() if closure is not None else None
        super().make_step(None)
        return loss


class CrashesWithoutGradient(Correct):
    def make_step(self, closure):
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.norm()
        return super().make_step(closure)


class CrashesOnScalars(Correct):
    def update(self, param, grad, group):
        assert param.shape[0] >= 0
        super().update(param, grad, group)


class IgnoresTheGroupsLr(Correct):
    def update(self, param, grad, group):
        super().update(param, grad, self.defaults)


class OverlooksNewGroups(Correct):
    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.known = {param for group in self.param_groups for param in group["params"]}

    def update(self, param, grad, group):
        if param in self.known:
            super().update(param, grad, group)

    def __getstate__(self):
        return super().__getstate__() | {"known": self.known}


class ReplacesTheMemory(Correct):
    def update(self, param, grad, group):
        param.data = param - group["lr"] * self.momentum(param, grad)


class WidensParameters(Correct):
    def update(self, param, grad, group):
        super().update(param, grad, group)
        param.data = param.data.float() if param.dtype in (torch.float16, torch.bfloat16) else param.data


class ChangesGradients(Correct):
    def update(self, param, grad, group):
        super().update(param, grad.mul_(0.5), group)


class IgnoresSparseGradients(Correct):
    def make_step(self, closure):
        kept = [(p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for param, grad in kept:
            param.grad = None if grad.is_sparse else grad
        loss = super().make_step(closure)
        for param, grad in kept:
            param.grad = grad if grad.is_sparse else param.grad
        return loss


class LosesTheStateWhenLoading(Correct):
    def load_state_dict(self, state_dict):
        super().load_state_dict({**state_dict, "state": {}})


class RoundsTheStateWhenLoading(Correct):
    """float32 memory of narrow parameters, which the base class casts to the parameter's dtype in `load_state_dict`."""

    def momentum(self, param, grad):
        memory = self.state[param]
        if not memory:
            memory["momentum"] = torch.zeros_like(param, dtype=torch.promote_types(param.dtype, torch.float32))
        return memory["momentum"].mul_(0.9).add_(grad)


class KeepsItsMemoryElsewhere(Correct):
    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.memory = {}

    def momentum(self, param, grad):
        self.memory[param] = 0.5 * self.memory.get(param, 0.0) + grad
        return self.memory[param]

    def __getstate__(self):
        return super().__getstate__() | {"memory": {}}


class SharesItsMemory(Correct):
    memory = {}

    def momentum(self, param, grad):
        key = tuple(param.shape)
        self.memory[key] = 0.5 * self.memory.get(key, torch.zeros_like(grad)).to(grad) + grad
        return self.memory[key]


class SavesObjects(Correct):
    def state_dict(self):
        return super().state_dict() | {"optimizer": type(self)}


class CannotBePickled(Correct):
    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.function = lambda: None

    def __getstate__(self):
        return super().__getstate__() | {"function": self.function}


class HidesItsGroups(Correct):
    def __repr__(self):
        return "HidesItsGroups()"


class CountsParametersItself(Correct):
    """Takes a generator or list of tensors only."""

    def __init__(self, params, lr):
        params = list(params)
        self.total = sum(param.numel() for param in params)
        super().__init__(params, lr)
