"""What the client gives and raises."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codecs.png import contact_sheet, encode_png

__all__ = ["Computed", "ProblemError", "ScoreTable", "ServiceUnreachable", "score_table"]


# The columns of scores that are numbers.
NUMBERS = (
    "log_likelihood_nats",
    "bits_per_dim",
    "elbo_nats",
    "standard_error_nats",
    "effective_sample_size",
    "p_value",
)
OF_ALL = ("estimator", "importance_samples", "seed", "alpha", "model", "version", "notes")
SHOWN = 64  # images or rows in a notebook


class ServiceUnreachable(Exception):  # noqa: N818 - a state, as in the standard library
    """No server answers at the URL, or not in time, or it is no iafvae service."""


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

    def __reduce__(self) -> tuple[type[ProblemError], tuple[dict[str, Any], int]]:
        return type(self), (self.document, self.status)  # else a worker process cannot raise it


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

    def _repr_png_(self) -> bytes | None:
        """In notebooks: the first images, as one."""
        images = self.array[:SHOWN]
        if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
            return None
        return encode_png(contact_sheet(images))

    def _repr_html_(self) -> str:
        """In notebooks: whose they are, and the first images."""
        png = self._repr_png_()
        source = "" if png is None else base64.b64encode(png).decode("ascii")
        picture = f'<img src="data:image/png;base64,{source}"><br>' if source else ""
        seed = "" if self.seed is None else f", seed {self.seed}"
        name = f"{self.model}@{self.version} ({self.provider}){seed}"
        shape = " x ".join(map(str, self.array.shape))
        return f"<figure>{picture}<figcaption>{shape} of {escape(name)}</figcaption></figure>"


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores of n images, as columns; what is not known (or not finite) is NaN.

    `anomalous` is False also where the server could not decide; `decided` tells where it did, and
    `status` why it did not. `discovery`: with `fdr` alone; `evidence`: the p-value of each
    statistic, by name; `certified_alpha`: the threshold that holds `alpha` with 95% confidence over
    calibration sets; `calibration`: name, number of images and date of what p-values refer to.
    """

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
    decided: NDArray[np.bool_]
    discovery: NDArray[np.bool_]
    evidence: dict[str, NDArray[np.float64]]
    certified_alpha: float | None = None
    fdr: float | None = None
    calibration: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.status)

    def _repr_html_(self) -> str:
        """In notebooks: the first rows, and what they are."""
        columns = ("log_likelihood_nats", "standard_error_nats", "bits_per_dim", "p_value")
        head = "".join(f"<th>{name}</th>" for name in (*columns, "anomalous", "status"))
        rows = "".join(self._row(index, columns) for index in range(min(len(self), SHOWN)))
        by = f"{self.estimator}, K = {self.importance_samples}, seed {self.seed}, {self.model}"
        caption = f"{len(self)} images by {by}@{self.version}; anomalous at {self.alpha:g}"
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        table = f"<table><caption>{escape(caption)}</caption><tr>{head}</tr>{rows}</table>"
        return table + notes

    def _row(self, index: int, columns: tuple[str, ...]) -> str:
        numbers = [f"{getattr(self, name)[index]:.4g}" for name in columns]
        verdict = str(bool(self.anomalous[index])).lower() if self.decided[index] else "undecided"
        cells = [*numbers, verdict, escape(self.status[index])]
        return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def score_table(document: Mapping[str, Any]) -> ScoreTable:
    """The columns of a ``POST /v1/score`` answer in JSON."""
    results = document["results"]

    def column(values: Iterable[float | None]) -> NDArray[np.float64]:
        return np.array(list(values), np.float64)  # None becomes NaN

    names = results[0].get("evidence", {}) if results else {}
    said: dict[str, Any] = {name: column(r[name] for r in results) for name in NUMBERS}
    said |= {name: document[name] for name in OF_ALL}
    said |= {name: document.get(name) for name in ("certified_alpha", "fdr", "calibration")}
    return ScoreTable(
        **said,
        anomalous=np.array([r["anomalous"] for r in results], np.bool_),
        discovery=np.array([r.get("discovery") for r in results], np.bool_),
        evidence={name: column(r["evidence"][name] for r in results) for name in names},
        altered=np.array([r["altered"] for r in results], np.bool_),
        status=[r["status"] for r in results],
        decided=np.array([None not in (r["anomalous"], r["p_value"]) for r in results], np.bool_),
    )
