"""Learn an LSTM in a few directions: gains and shifts of its gates, in which evolution strategies are cheap.

First-order meta-gradients leave out how an update changes the gradients after it. Where they vanish, the meta-loss need
not be flat, and the exact second-order ones explode over long unrolls. Evolution strategies estimate the gradient of
the smoothed meta-loss without bias, with a variance that grows with the number of weights: in these directions they
need some dozens of pairs where all weights would take thousands.
"""

import torch
from torch import Tensor, nn

from l2o import kernels
from l2o.rules.lstm import CoordinatewiseLSTM, LSTMState

_SHIFT = 0.1
"""Unit of `output_shift`, standard deviations of the output weights; of a single one, its absolute value."""


class LSTMGains(CoordinatewiseLSTM):
    """A `CoordinatewiseLSTM` with fixed weights, of which 9 L + I + 2 numbers are learned (L layers, I inputs).

    θ = {log_gates, shifts (L, 4), log_recurrent (L,), log_inputs (I,), log_output, output_shift (1,)}: factors of what
    enters each gate (in the order of `l2o.kernels.reference`) and shifts of its bias, factors of each layer's recurrent
    weights, of each input's and of the output, and a shift of the output. All zero is the LSTM itself.
    """

    def __init__(self, rule: CoordinatewiseLSTM):
        """Take the LSTM from which to start; it is copied."""
        super().__init__(rule.config, torch.Generator())  # what it draws is replaced
        dtype, layers = rule.output_bias.dtype, rule.config.layers
        for name in dict(self.named_children()) | dict(self.named_parameters(recurse=False)):
            delattr(self, name)
        for name, weight in rule.named_parameters():
            self.register_buffer(_flat(name), weight.detach().clone())
        inputs = rule.weights[0].shape[1] - rule.config.hidden_size

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, dtype=dtype, device=rule.output_bias.device))

        self.log_gates, self.shifts, self.log_recurrent = zeros(layers, 4), zeros(layers, 4), zeros(layers)
        self.log_inputs, self.log_output, self.output_shift = zeros(inputs), zeros(1), zeros(1)

    def merged(self) -> CoordinatewiseLSTM:
        """Return an LSTM whose weights have taken the gains up."""
        rule = CoordinatewiseLSTM(self.config, torch.Generator()).to(self.output_bias)
        rule.load_state_dict({name: weight.detach() for name, weight in self._weights().items()})
        return rule

    def update_vjp(self, grads: Tensor, cotangents: Tensor, state: LSTMState, step: Tensor) -> dict[str, Tensor]:
        """See `CoordinatewiseRule.update_vjp`; the LSTM's own, passed on to the gains."""
        with torch.enable_grad():
            weights, theta = self._weights(), dict(self.named_parameters())
            pieces = super().update_vjp(grads, cotangents, state, step)
            found = torch.autograd.grad([weights[name] for name in pieces], list(theta.values()), list(pieces.values()))
        return dict(zip(theta, found, strict=True))

    def _weights(self) -> dict[str, Tensor]:
        """Return the weights of the LSTM by name, connected to the gains."""
        size, found = self.config.hidden_size, {}
        for layer in range(self.config.layers):
            weight, bias = (getattr(self, f"{kind}_{layer}") for kind in ("weights", "biases"))
            before = self.log_inputs if layer == 0 else self.log_inputs.new_zeros(size)
            columns = torch.cat((before, self.log_recurrent[layer].expand(size)))
            rows = self.log_gates[layer].repeat_interleave(size)
            found[f"weights.{layer}"] = weight * (rows[:, None] + columns).exp()
            found[f"biases.{layer}"] = bias + self.shifts[layer].repeat_interleave(size)
        spread = self.output_weight.std() if size > 1 else self.output_weight.abs().max()
        shifted = self.output_bias + _SHIFT * spread * self.output_shift
        gain = self.log_output.exp()
        return found | {"output_weight": gain * self.output_weight, "output_bias": gain * shifted}

    def _network(self) -> kernels.Network:
        weights, config = self._weights(), self.config
        layers = range(config.layers)
        matrices, biases = ([weights[f"{kind}.{layer}"] for layer in layers] for kind in ("weights", "biases"))
        theta = (matrices, biases, weights["output_weight"], weights["output_bias"])
        return kernels.Network(*theta, config.p, config.log_eps, config.scale, config.forget_bias)


def _flat(name: str) -> str:
    """Return a parameter's name as a buffer may be called: weights.0 as weights_0."""
    return name.replace(".", "_")
