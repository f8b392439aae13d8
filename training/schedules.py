"""What changes from step to step: the learning rate and the weight of the KL penalty.

Each is a function of the configuration and the step, so that a resumed run needs no state; the
schedule "budget" alone also looks at the call's minutes.
"""

import math

from training.config import OptimConfig, TrainConfig

__all__ = ["kl_weight_at", "learning_rate_at", "rewarming_at"]


def learning_rate_at(config: OptimConfig, step: int, total_steps: int, spent: float = 0.0) -> float:
    """The learning rate of step `step` (from 0) of `total_steps`.

    The warm-up takes at most a tenth of the run: a short one would else end before it learns.
    `spent` is the share of the call's minutes that is over, in [0, 1], 0 where there is no limit.
    """
    rate = config.learning_rate
    warmup = min(config.warmup_steps, total_steps // 10)
    if step < warmup:
        return rate * (step + 1) / warmup
    if config.schedule == "constant":
        return rate
    if config.schedule == "budget":
        return rate * min(1.0, max(0.0, 1 - spent) / max(1e-9, config.decay_fraction))
    if config.schedule == "cosine":
        span = max(1, total_steps - warmup)
        return rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / span))
    fall = max(1.0, config.decay_fraction * total_steps)
    return rate * min(1.0, (total_steps - step) / fall)


def rewarming_at(config: OptimConfig, step: int, since: int, total_steps: int) -> float:
    """A factor of the learning rate for an optimiser that began afresh at step `since` of a run.

    Its first steps are as long as the rate allows, whatever the gradients: in a trained model they
    destroy much, so the rate rises again as at the run's start.
    """
    warmup = min(config.warmup_steps, total_steps // 10)
    return min(1.0, (step - since + 1) / warmup) if since and warmup else 1.0


def kl_weight_at(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The weight of the KL penalty: linear from `kl_warmup_start` to 1 over the warm-up."""
    span = config.kl_warmup_epochs * steps_per_epoch
    if step >= span:
        return 1.0
    return config.kl_warmup_start + (1 - config.kl_warmup_start) * step / span
