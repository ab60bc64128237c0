"""The learning rate as a closed form of the step, so that there is no state to save."""

import math


def learning_rate(step: int, total_steps: int, peak: float, floor: float, warmup: int) -> float:
    """The rate of step `step` of 0..total_steps-1.

    Linear from peak / warmup to peak over the first `warmup` steps, then a half cosine that ends at `floor` in the
    last step.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step + 1 - warmup) / (total_steps - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
