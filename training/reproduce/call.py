"""How one call of `iafvae-train reproduce` ended, and on what machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.config import Runtime
from training.fit.device import choose_device
from training.fit.signals import SIGNALS, signal_name, stoppable
from training.runs import provenance

__all__ = ["SIGNALS", "Outcome", "machine", "signal_name", "stoppable"]


@dataclass(frozen=True)
class Outcome:
    """How a call ended, "done", "budget", "SIGINT" or "SIGTERM", and what it wrote."""

    reason: str
    document: dict[str, Any]


def machine(runtime: Runtime) -> str:
    """What computes, in its maker's words."""
    return provenance.machine(choose_device(runtime.device), runtime.threads)
