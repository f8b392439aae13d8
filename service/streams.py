"""The standard streams of a process that may have been started without them."""

from __future__ import annotations

import os
import sys

__all__ = ["occupy_standard_streams"]


def occupy_standard_streams() -> None:
    """Open each closed standard stream on the null device.

    Else a socket would get its number, and with it the messages that libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(opened, True)  # what this process starts has them, too
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
