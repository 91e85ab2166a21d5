"""Online dictionary learning: a matrix whose few columns explain each of many signals.

    minimise over D, x_i   Σ_i ½‖D x_i − s_i‖² + λ‖x_i‖₁,   ‖d_j‖ = 1

Each minibatch is coded by proximal gradient steps; then every atom is updated in turn from C = Σ xxᵀ and B = Σ s xᵀ,

    d_j ← (d_j + (B_j − D C_j) / C_jj),  normalised

Source: Mairal et al. 2010, Online learning for matrix factorization and sparse coding, JMLR 11, algorithms 1 and 2.
Differs from it: atoms have unit norm, not at most unit norm; the past fades by a half after each pass over the signals.
"""

import torch
from torch import Tensor

from l2o.proximal import L1

_CODING_STEPS = 30
_BATCH = 512


@torch.no_grad()
def learn_dictionary(
    signals: Tensor, atoms: int, strength: float, generator: torch.Generator, passes: int = 3
) -> Tensor:
    """Return D, shape (n, atoms), with columns of unit norm; it starts at signals drawn at random.

    Args:
        signals: s_i as rows, shape (count, n), none of them 0.
        atoms: columns of D, at most `count`.
        strength: λ.
        generator: draws the start and the order.
        passes: times that every signal is seen.

    Raises:
        ValueError: if there are fewer signals than atoms.
    """
    if len(signals) < atoms:
        raise ValueError(f"{atoms} atoms need at least as many signals, got {len(signals)}")
    start = signals[torch.randperm(len(signals), generator=generator)[:atoms]]
    D = (start / start.norm(dim=1, keepdim=True)).mT.contiguous()
    C, B = signals.new_zeros(atoms, atoms), signals.new_zeros(signals.shape[1], atoms)
    for _ in range(passes):
        C, B = C / 2, B / 2
        for batch in signals[torch.randperm(len(signals), generator=generator)].split(_BATCH):
            codes = sparse_codes(D, batch, strength)
            C, B = C + codes.mT @ codes, B + batch.mT @ codes
            D = _update_atoms(D, C, B)
    return D


def sparse_codes(D: Tensor, signals: Tensor, strength: float, steps: int = _CODING_STEPS) -> Tensor:
    """Return codes by proximal gradient steps from 0, shape (count, atoms)."""
    gram, correlation = D.mT @ D, signals @ D
    step = 1 / float(torch.linalg.eigvalsh(gram)[-1])
    x, prox = torch.zeros_like(correlation), L1(strength).prox
    for _ in range(steps):
        x = prox(x - step * (x @ gram - correlation), step)
    return x


def _update_atoms(D: Tensor, C: Tensor, B: Tensor) -> Tensor:
    """One round of block-coordinate descent over the atoms that are in use."""
    D = D.clone()
    for j in range(D.shape[1]):
        if C[j, j] > 1e-8:
            atom = D[:, j] + (B[:, j] - D @ C[:, j]) / C[j, j]
            D[:, j] = atom / atom.norm().clamp(min=1e-12)
    return D
