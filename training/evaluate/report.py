"""What an evaluation found: figures with their errors, the protocol in words, JSON and a table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from model.config import BINARY_LIKELIHOODS

__all__ = ["Estimate", "EvaluationReport", "markdown_table", "number", "pixels_protocol"]

AS_THEY_ARE = "The 8-bit pixels as they are."
DRAWN = (
    "Each pixel of each image drawn once to 0 or 255 with its grey value as probability, "
    "uniforms from Philox4x64 keyed by the seed; the bound is of the drawn image."
)


def pixels_protocol(likelihood: str) -> str:
    """What a model with this likelihood was shown of the images, in words."""
    return DRAWN if likelihood in BINARY_LIKELIHOODS else AS_THEY_ARE


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over images, in nats per image (higher is better).

    `standard_error_nats` is over the images (another test set), `monte_carlo_error_nats` over the
    latents' draws (another seed): None where one draw cannot tell.
    """

    value_nats: float
    standard_error_nats: float | None
    monte_carlo_error_nats: float | None
    bits_per_dim: float


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """A model's figures on one split.

    `elbo` is the mean over all K draws, `importance_weighted` the bound of Burda et al. 2016
    (arXiv:1509.00519) from the same draws. `kl_nats` is the KL of each latent group, top down;
    `log_px_z_nats` what is left of the ELBO. `active_units` counts the latents of each group whose
    posterior mean varies over the images by more than 0.01 (ibid., section 5); None at K = 1, and
    where only graphs were at hand, which give no latents. `backend` is what computed.
    """

    dataset: str
    split: str
    images: int
    importance_samples: int
    seed: int
    likelihood: str
    dims: int
    elbo: Estimate
    importance_weighted: Estimate
    log_px_z_nats: float
    kl_nats: dict[str, float]
    active_units: dict[str, int] | None
    latents: dict[str, int]
    effective_sample_size: float
    seconds: float
    backend: str = "float32"

    @property
    def protocol(self) -> str:
        """How the figures came about, in words."""
        return (
            f"{self.images} images of the {self.split} split of {self.dataset}. "
            f"{pixels_protocol(self.likelihood)} {self.importance_samples} draws of "
            f"the latents for each image, seed {self.seed}, {self.backend}."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the protocol."""
        return {**asdict(self), "protocol": self.protocol}

    def manifest_entries(self, command: str) -> list[dict[str, Any]]:
        """The entries of a bundle's `evaluation`; `command` is what reproduces them.

        None of a single image: its figures have no standard error.
        """
        return [
            {
                "estimator": estimator,
                "importance_samples": self.importance_samples,
                "split": self.split,
                "images": self.images,
                "seed": self.seed,
                "value_nats": estimate.value_nats,
                "standard_error_nats": estimate.standard_error_nats,
                "bits_per_dim": estimate.bits_per_dim,
                "kl_nats": self.kl_nats,
                "protocol": self.protocol,
                "command": command,
            }
            for estimator, estimate in self._estimates().items()
            if estimate.standard_error_nats is not None
        ]

    def table(self) -> Table:
        """The figures for a terminal."""
        table = Table(
            "",
            "nats",
            "± images",
            "± draws",
            "bits/dim",
            title=f"{self.dataset}, {self.split}",
            caption=self.protocol,
        )
        for column in table.columns[1:]:
            column.justify = "right"
        names = {"elbo": "ELBO", "importance_weighted": f"IW-{self.importance_samples}"}
        for estimator, estimate in self._estimates().items():
            table.add_row(
                names[estimator],
                f"{estimate.value_nats:.3f}",
                number(estimate.standard_error_nats, 3),
                number(estimate.monte_carlo_error_nats, 4),
                f"{estimate.bits_per_dim:.4f}",
            )
        table.add_row("log p(x|z)", f"{self.log_px_z_nats:.3f}", end_section=True)
        for group, nats in self.kl_nats.items():
            table.add_row(f"KL {group}", f"{nats:.3f}")
            if self.active_units is not None:
                active = f"{self.active_units[group]} of {self.latents[group]}"
                table.add_row(f"active units {group}", active)
        return table

    def _estimates(self) -> dict[str, Estimate]:
        if self.importance_samples == 1:  # the same number: said once
            return {"elbo": self.elbo}
        return {"elbo": self.elbo, "importance_weighted": self.importance_weighted}


def number(value: float | None, digits: int) -> str:
    """A figure as a table has it; nothing where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: names on the left, figures to the right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
