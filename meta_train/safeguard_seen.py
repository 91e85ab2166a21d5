"""Optimizees that chose the options of `l2o.Guard`: 60 on which earlier ones were judged, and 16 for tuning alone.

Kept so that new ones to be judged on are others. The 60 draw their minibatches from the test split, the 16 from
outer_valid (diabetes: one half of the patients each).
"""

import functools

from torch import nn
from torch.nn import functional as F

from meta_train.safeguard_problems import Optimizee, conv, mlp, one_against_the_rest, residual, squares


def _groups(width: int) -> nn.Module:
    return nn.GroupNorm(4, width)


_smoothed = functools.partial(F.cross_entropy, label_smoothing=0.1)

_S, _T, _R, _G, _U = nn.Sigmoid, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU
_BATCH, _LAYER, _ROOT = nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm

SEEN: dict[str, Optimizee] = {
    "MNIST 28², sigmoid 32": Optimizee("mnist-28", lambda: mlp([784, 32, 10], _S)),
    "MNIST, sigmoid 40": Optimizee("mnist", lambda: mlp([196, 40, 10], _S)),
    "MNIST, sigmoid 2 × 20": Optimizee("mnist", lambda: mlp([196, 20, 20, 10], _S)),
    "MNIST, tanh 20": Optimizee("mnist", lambda: mlp([196, 20, 10], _T)),
    "MNIST, tanh 3 × 24": Optimizee("mnist", lambda: mlp([196, 24, 24, 24, 10], _T)),
    "MNIST, ReLU 20": Optimizee("mnist", lambda: mlp([196, 20, 10], _R)),
    "MNIST, ReLU 4 × 20": Optimizee("mnist", lambda: mlp([196, 20, 20, 20, 20, 10], _R)),
    "MNIST, GELU 2 × 32": Optimizee("mnist", lambda: mlp([196, 32, 32, 10], _G)),
    "MNIST, tanh 4 × 16, LayerNorm": Optimizee("mnist", lambda: mlp([196, 16, 16, 16, 16, 10], _T, _LAYER)),
    "MNIST, ReLU 2 × 24, BatchNorm": Optimizee("mnist", lambda: mlp([196, 24, 24, 10], _R, _BATCH)),
    "MNIST, conv 4-8, ReLU": Optimizee("mnist", lambda: conv((1, 14), [4, 8], _R)),
    "MNIST, conv 8-8, GELU, GroupNorm": Optimizee("mnist", lambda: conv((1, 14), [8, 8], _G, _groups)),
    "digits, softmax": Optimizee("digits", lambda: mlp([64, 10], _S)),
    "digits, sigmoid 20": Optimizee("digits", lambda: mlp([64, 20, 10], _S)),
    "digits, ReLU 2 × 32, BatchNorm": Optimizee("digits", lambda: mlp([64, 32, 32, 10], _R, _BATCH)),
    "digits, residual 3 × 20, GELU, LayerNorm": Optimizee("digits", lambda: residual((64, 20), 3, _G, _LAYER)),
    "digits, conv 8, tanh": Optimizee("digits", lambda: conv((1, 8), [8], _T)),
    "CIFAR-10, conv 6-12, ReLU, BatchNorm": Optimizee("cifar10", lambda: conv((3, 16), [6, 12], _R, nn.BatchNorm2d)),
    "CIFAR-10, sigmoid 16": Optimizee("cifar10", lambda: mlp([768, 16, 10], _S)),
    "diabetes, tanh 2 × 16": Optimizee("diabetes", lambda: mlp([10, 16, 16, 1], _T), F.mse_loss),
    "MNIST, sigmoid 28": Optimizee("mnist", lambda: mlp([196, 28, 10], _S)),
    "MNIST, sigmoid 2 × 32": Optimizee("mnist", lambda: mlp([196, 32, 32, 10], _S)),
    "MNIST, tanh 36": Optimizee("mnist", lambda: mlp([196, 36, 10], _T)),
    "MNIST, SiLU 28": Optimizee("mnist", lambda: mlp([196, 28, 10], _U)),
    "MNIST, SiLU 5 × 16": Optimizee("mnist", lambda: mlp([196, *[16] * 5, 10], _U)),
    "MNIST, ReLU 3 × 32": Optimizee("mnist", lambda: mlp([196, *[32] * 3, 10], _R)),
    "MNIST, GELU 3 × 20, LayerNorm": Optimizee("mnist", lambda: mlp([196, *[20] * 3, 10], _G, _LAYER)),
    "MNIST, sigmoid 2 × 24, BatchNorm": Optimizee("mnist", lambda: mlp([196, 24, 24, 10], _S, _BATCH)),
    "MNIST, ReLU 5 × 24, BatchNorm": Optimizee("mnist", lambda: mlp([196, *[24] * 5, 10], _R, _BATCH)),
    "MNIST, conv 4-8, tanh": Optimizee("mnist", lambda: conv((1, 14), [4, 8], _T)),
    "MNIST, conv 8, SiLU, GroupNorm": Optimizee("mnist", lambda: conv((1, 14), [8], _U, _groups)),
    "MNIST, residual 2 × 20, ReLU, LayerNorm": Optimizee("mnist", lambda: residual((196, 20), 2, _R, _LAYER)),
    "digits, tanh 3 × 20": Optimizee("digits", lambda: mlp([64, *[20] * 3, 10], _T)),
    "digits, sigmoid 32, LayerNorm": Optimizee("digits", lambda: mlp([64, 32, 10], _S, _LAYER)),
    "digits, conv 6-12, ReLU, BatchNorm": Optimizee("digits", lambda: conv((1, 8), [6, 12], _R, nn.BatchNorm2d)),
    "digits, residual 4 × 16, SiLU, BatchNorm": Optimizee("digits", lambda: residual((64, 16), 4, _U, _BATCH)),
    "CIFAR-10, conv 4-8, SiLU, GroupNorm": Optimizee("cifar10", lambda: conv((3, 16), [4, 8], _U, _groups)),
    "CIFAR-10, tanh 2 × 16": Optimizee("cifar10", lambda: mlp([768, 16, 16, 10], _T)),
    "CIFAR-10, GELU 16, LayerNorm": Optimizee("cifar10", lambda: mlp([768, 16, 10], _G, _LAYER)),
    "diabetes, GELU 3 × 12": Optimizee("diabetes", lambda: mlp([10, *[12] * 3, 1], _G), F.mse_loss),
    "MNIST, softsign 24": Optimizee("mnist", lambda: mlp([196, 24, 10], nn.Softsign)),
    "MNIST, hard sigmoid 30": Optimizee("mnist", lambda: mlp([196, 30, 10], nn.Hardsigmoid)),
    "MNIST, sigmoid 3 × 20, LayerNorm": Optimizee("mnist", lambda: mlp([196, *[20] * 3, 10], _S, _LAYER)),
    "MNIST, softplus 2 × 24": Optimizee("mnist", lambda: mlp([196, 24, 24, 10], nn.Softplus)),
    "MNIST, ELU 4 × 20": Optimizee("mnist", lambda: mlp([196, *[20] * 4, 10], nn.ELU)),
    "MNIST, leaky ReLU 2 × 28, BatchNorm": Optimizee("mnist", lambda: mlp([196, 28, 28, 10], nn.LeakyReLU, _BATCH)),
    "MNIST, tanh 6 × 16, LayerNorm": Optimizee("mnist", lambda: mlp([196, *[16] * 6, 10], _T, _LAYER)),
    "MNIST, Mish 3 × 24, RMSNorm": Optimizee("mnist", lambda: mlp([196, *[24] * 3, 10], nn.Mish, _ROOT)),
    "MNIST, conv 6, ELU, InstanceNorm": Optimizee("mnist", lambda: conv((1, 14), [6], nn.ELU, nn.InstanceNorm2d)),
    "MNIST, residual 3 × 16, tanh, LayerNorm": Optimizee("mnist", lambda: residual((196, 16), 3, _T, _LAYER)),
    "MNIST, sigmoid 24, smoothed labels": Optimizee("mnist", lambda: mlp([196, 24, 10], _S), _smoothed),
    "MNIST, sigmoid 26, squares": Optimizee("mnist", lambda: mlp([196, 26, 10], _S), squares),
    "digits, sigmoid 2 × 24, margins": Optimizee("digits", lambda: mlp([64, 24, 24, 10], _S), F.multi_margin_loss),
    "digits, ReLU6 3 × 24, one against the rest": Optimizee(
        "digits", lambda: mlp([64, *[24] * 3, 10], nn.ReLU6), one_against_the_rest
    ),
    "digits, Mish 5 × 16": Optimizee("digits", lambda: mlp([64, *[16] * 5, 10], nn.Mish)),
    "digits, GELU 4 × 20, BatchNorm": Optimizee("digits", lambda: mlp([64, *[20] * 4, 10], _G, _BATCH)),
    "digits, tanh 2 × 28, RMSNorm": Optimizee("digits", lambda: mlp([64, 28, 28, 10], _T, _ROOT)),
    "digits, conv 8, sigmoid": Optimizee("digits", lambda: conv((1, 8), [8], _S)),
    "digits, residual 6 × 12, ReLU, RMSNorm": Optimizee("digits", lambda: residual((64, 12), 6, _R, _ROOT)),
    "digits, autoencoder 24, sigmoid": Optimizee("digits-itself", lambda: mlp([64, 24, 64], _S), F.mse_loss),
}
"""On which three earlier guards were judged: one without boost on the first 20, one without audition on the next 20,
and on the last 20 one whose audition and trust asked by how much the loss had fallen. None passed on all: the first two
ended above 1.1 × Adam, the third kept 76 % on "smoothed labels". There it had won all its auditions, but a loss that
cannot fall below 0.5 earned too little trust.

They chose the present one. The audition came from the second 20, where the guard without it had ended at 1.65 × Adam at
worst, on normalised networks, where no Adam could undo what 100 to 600 long steps had done. `ahead` came from auditions
on all 60 with seeds 0 and 1: 0.7 lets the rule go on in 38 of 44 where the plain one wins and in 20 of 76 where it
fails, where the rest of the guard has to hold. `grow` came from "smoothed labels", where 1.01 and 1.02 kept 97 and 93 %
with seed 0; then 26 networks on which the rule goes on, or nearly, were run once, seed 0, with 1.01: at most 1.0 ×
Adam, at least 82 % kept. A running mean of few losses no longer counts as the least one: its noise had cost Adam boost
20 steps after an exchange."""

TUNING: dict[str, Optimizee] = {
    "MNIST, sigmoid 16": Optimizee("mnist", lambda: mlp([196, 16, 10], _S)),
    "MNIST 28², sigmoid 24": Optimizee("mnist-28", lambda: mlp([784, 24, 10], _S)),
    "MNIST, sigmoid 3 × 24": Optimizee("mnist", lambda: mlp([196, 24, 24, 24, 10], _S)),
    "MNIST, ReLU 2 × 24": Optimizee("mnist", lambda: mlp([196, 24, 24, 10], _R)),
    "MNIST, tanh 2 × 30": Optimizee("mnist", lambda: mlp([196, 30, 30, 10], _T)),
    "MNIST, GELU 24, LayerNorm": Optimizee("mnist", lambda: mlp([196, 24, 10], _G, _LAYER)),
    "MNIST, tanh 3 × 16, BatchNorm": Optimizee("mnist", lambda: mlp([196, 16, 16, 16, 10], _T, _BATCH)),
    "MNIST, conv 6-12, ReLU": Optimizee("mnist", lambda: conv((1, 14), [6, 12], _R)),
    "digits, ReLU 32": Optimizee("digits", lambda: mlp([64, 32, 10], _R)),
    "digits, sigmoid 2 × 16": Optimizee("digits", lambda: mlp([64, 16, 16, 10], _S)),
    "digits, conv 8-16, GELU, GroupNorm": Optimizee("digits", lambda: conv((1, 8), [8, 16], _G, _groups)),
    "digits, residual 2 × 24, ReLU, BatchNorm": Optimizee("digits", lambda: residual((64, 24), 2, _R, _BATCH)),
    "CIFAR-10, conv 8-8, GELU": Optimizee("cifar10", lambda: conv((3, 16), [8, 8], _G)),
    "CIFAR-10, ReLU 20, BatchNorm": Optimizee("cifar10", lambda: mlp([768, 20, 10], _R, _BATCH)),
    "diabetes, ReLU 16": Optimizee("diabetes", lambda: mlp([10, 16, 1], _R), F.mse_loss),
    "diabetes, sigmoid 2 × 10": Optimizee("diabetes", lambda: mlp([10, 10, 10, 1], _S), F.mse_loss),
}
"""On which the other options were chosen, with lstm-mnist, by an earlier guard. First, without boost, 23 variants of a
prototype on one seed: none met both aims on all. Then boost 4, with eight variants on parts of the list and seeds 0 and
1: cool 0.25, 0.5, 0.7, 0.99; earned 1; patience 0.1; trust 8 with earned 16; going back to the first weights when Adam
takes over. Smaller trust or growth kept 64 to 77 % on "sigmoid 16"; smaller trust, or going back, ended above 1.1 ×
Adam on a seed of "conv 6-12, ReLU"."""
