"""Learning rate over a run, as a pure function of the step."""

import math


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Factor of the peak learning rate at `step` (0-based): linear warm-up, then a cosine to zero.

    The first step already moves (1 / warmup_steps), the last one still does: the cosine reaches
    zero at `total_steps`, after the last step (SGDR, Loshchilov & Hutter 2017, eq. 5, no restart).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
