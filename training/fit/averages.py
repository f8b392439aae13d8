"""What a step was, and averages over the steps since the last report."""

import math
import time
from dataclasses import dataclass

__all__ = ["Step", "Window", "bound_figures"]


@dataclass(frozen=True)
class Step:
    """One step: means over its whole batch in nats, its gradient's norm, and what came of it.

    `stop` is the reason to stop that one of several processes gave, "" where none did.
    """

    loss: float
    elbo_nats: float
    kl_nats: float
    norm: float
    taken: bool
    stop: str = ""


def bound_figures(elbo_nats: float, kl_nats: float, dims: int) -> dict[str, float]:
    """A bound in nats and in bits for each of `dims` subpixels."""
    return {
        "elbo_nats": elbo_nats,
        "kl_nats": kl_nats,
        "bits_per_dim": -elbo_nats / (dims * math.log(2)),
    }


class Window:
    """Averages over the steps since the last report, and their speed.

    The figures of a step that was skipped are no part of the averages.
    """

    def __init__(self, dims: int) -> None:
        self.dims = dims
        self.restart()

    def restart(self) -> None:
        """Forget all steps so far, and the time until now."""
        self.taken: list[Step] = []
        self.images = 0
        self.since = time.perf_counter()

    def add(self, step: Step, images: int) -> None:
        """Count a step of so many images."""
        self.images += images
        if step.taken:
            self.taken.append(step)

    def figures(self) -> dict[str, float]:
        """The averages; nan where every step was skipped."""
        seconds = time.perf_counter() - self.since

        def mean(name: str) -> float:
            values = [float(getattr(step, name)) for step in self.taken]
            return math.fsum(values) / len(values) if values else math.nan

        return {
            **bound_figures(mean("elbo_nats"), mean("kl_nats"), self.dims),
            "gradient_norm": mean("norm"),
            "images_per_second": self.images / seconds,
        }
