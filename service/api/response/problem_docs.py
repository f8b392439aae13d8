"""How FastAPI's routes say which problem documents they answer with."""

from __future__ import annotations

from typing import Any

from service.api.request.negotiation import PROBLEM
from service.errors import PROBLEMS

__all__ = ["documented"]

SCHEMA = {"$ref": "#/components/schemas/ProblemDocument"}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The argument `responses` of a route that may answer with problems of these statuses."""
    return {
        status: {
            "description": "; ".join(
                sorted({p.title for p in PROBLEMS.values() if p.status == status})
            ),
            "content": {PROBLEM: {"schema": SCHEMA}},
        }
        for status in statuses
    }
