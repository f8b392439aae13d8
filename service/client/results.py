"""What the client gives and raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Computed", "ProblemError", "ScoreTable", "ServiceUnreachable", "score_table"]


class ServiceUnreachable(Exception):  # noqa: N818 - a state, as in the standard library
    """No server answers at the URL, or not in time."""


class ProblemError(Exception):
    """The server refused. Members are those of its problem document; compare with `type`."""

    def __init__(self, document: Mapping[str, Any], status: int) -> None:
        self.type = str(document.get("type", "about:blank")).rpartition(":")[2]
        self.title = str(document.get("title", f"HTTP {status}"))
        self.status = status
        self.detail = str(document.get("detail", ""))
        self.request_id = str(document.get("request_id", ""))
        self.document = dict(document)
        super().__init__(f"{self.title}: {self.detail}" if self.detail else self.title)


@dataclass(frozen=True, kw_only=True)
class Computed:
    """Images uint8 [n, C, H, W], or latents or prior_eps float32 [n, D], and who computed them."""

    array: NDArray[Any]
    model: str
    version: str
    bundle: str
    provider: str
    seed: int | None
    queue_seconds: float
    compute_seconds: float

    @property
    def images(self) -> NDArray[np.uint8]:
        """The array as pixels."""
        return self.array

    @property
    def latents(self) -> NDArray[np.float32]:
        """The array as latents."""
        return self.array


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores of n images, as columns; what is not known (or not finite) is NaN."""

    log_likelihood_nats: NDArray[np.float64]
    bits_per_dim: NDArray[np.float64]
    elbo_nats: NDArray[np.float64]
    standard_error_nats: NDArray[np.float64]
    effective_sample_size: NDArray[np.float64]
    p_value: NDArray[np.float64]
    anomalous: NDArray[np.bool_]
    altered: NDArray[np.bool_]
    status: list[str]
    estimator: str
    importance_samples: int
    seed: int
    alpha: float
    model: str
    version: str
    notes: list[str]

    def __len__(self) -> int:
        return len(self.status)


def score_table(document: Mapping[str, Any]) -> ScoreTable:
    """The columns of a ``POST /v1/score`` answer in JSON."""
    results = document["results"]

    def column(name: str) -> NDArray[np.float64]:
        return np.array([np.nan if r[name] is None else r[name] for r in results], np.float64)

    return ScoreTable(
        log_likelihood_nats=column("log_likelihood_nats"),
        bits_per_dim=column("bits_per_dim"),
        elbo_nats=column("elbo_nats"),
        standard_error_nats=column("standard_error_nats"),
        effective_sample_size=column("effective_sample_size"),
        p_value=column("p_value"),
        anomalous=np.array([r["anomalous"] for r in results], np.bool_),
        altered=np.array([r["altered"] for r in results], np.bool_),
        status=[r["status"] for r in results],
        estimator=document["estimator"],
        importance_samples=document["importance_samples"],
        seed=document["seed"],
        alpha=document["alpha"],
        model=document["model"],
        version=document["version"],
        notes=document["notes"],
    )
