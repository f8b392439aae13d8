"""What batches cost here, averaged while serving."""

from __future__ import annotations

__all__ = ["CostModel"]

WEIGHT = 0.05  # of a new batch in the average
# A batch that took so many times what was expected (the machine was busy, or asleep) counts as this
# many times: costs that really have risen are learnt in a few batches, accidents are not.
SURPRISE = 3.0


class CostModel:
    """Seconds that rows of an operation take one worker.

    In ``score`` the bottom-up network runs once an image and the top-down network once a row, and
    they cost about the same: a batch is half of each. Elsewhere rows are images. `each` has the
    seconds of one row that is an image, where they are known.
    """

    def __init__(self) -> None:
        self.each: dict[str, float] = {}  # of one row that is an image

    def add(self, operation: str, rows: int, images: float, seconds: float) -> None:
        """Learn from one batch."""
        each = 2.0 * seconds / (rows + images)
        known = self.each.get(operation)
        if known is not None:
            each = known + WEIGHT * (min(each, SURPRISE * known) - known)
        self.each[operation] = each

    def seconds(self, operation: str, rows: float, images: float) -> float:
        """What `rows` rows of `images` images will take; 0 while nothing is known."""
        return self.each.get(operation, 0.0) * (rows + images) / 2.0
