"""Seeds for streams of random numbers that must not meet: training, validation, tuning."""

import hashlib


def derive_seed(seed: int, purpose: str) -> int:
    """Return a seed of 32 bits that is unrelated for every (seed, purpose).

    Adding a large offset would not do: torch's CPU generator uses the low 32 bits of a seed alone, so that `seed` and
    `seed + 2**32` give the same numbers.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:4], "big")
