"""Learning rate and random seed of a step, as functions of its number, so that there is no state to save."""

import math
from hashlib import blake2b


def learning_rate(step: int, total_steps: int, peak: float, floor: float, warmup: int) -> float:
    """Learning rate of step `step` of 0..total_steps-1.

    Rises linearly from peak / warmup to peak over the first `warmup` steps, then falls along a half cosine that ends at
    `floor` in the last step.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step + 1 - warmup) / (total_steps - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of one process's dropout in one step, 64 bits.

    A hash, because a sum or an exclusive or of the three numbers would give some steps the same dropout.
    """
    return int.from_bytes(blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest(), "little")
