"""The averaged model's bound on the validation split while a run goes on."""

import torch

from model.contract import DensityModel
from model.objective import ElboTerms
from training.data import ImageData
from training.fit.averages import bound_figures
from training.fit.batches import STREAM_VALIDATION, noise, presented, step_generator
from training.fit.device import Backend
from training.fit.distributed import World

__all__ = ["validate"]

# Images computed at once; the noise of a part depends on where it starts, so these are fixed.
ROWS, ROWS_OF_LARGE, LARGE_LATENT = 500, 100, 4096


@torch.no_grad()
def validate(
    model: DensityModel, data: ImageData, backend: Backend, world: World
) -> dict[str, float]:
    """Mean bound of `model` on `data`, in float32, with fixed noise; one draw an image.

    Processes divide the images among them and all get the figures of all: "elbo_nats", "kl_nats",
    "bits_per_dim", and "kl_nats/GROUP" of each group where there are several.
    """
    rows = ROWS if model.layout.dim <= LARGE_LATENT else ROWS_OF_LARGE
    starts = range(0, len(data), rows)[world.rank :: world.size]
    sums = torch.zeros(1 + len(model.kl_groups), dtype=torch.float64, device=backend.device)
    for start in starts:
        pixels = torch.from_numpy(data.pixels[start : start + rows]).to(backend.device)
        generator = step_generator(backend.device, 0, STREAM_VALIDATION, start)
        x = backend.layout(presented(model, pixels, generator))
        terms = ElboTerms(*model(x, noise(model, len(x), generator)))
        groups = model.group_kl(terms.kl).double().sum(dim=0)
        sums += torch.cat([terms.elbo.double().sum()[None], groups])
    with world.peers():
        elbo, *kl = (world.total(sums) / len(data)).tolist()
    figures = bound_figures(elbo, sum(kl), model.dims)
    if len(kl) > 1:
        figures |= {f"kl_nats/{name}": nats for name, nats in zip(model.kl_groups, kl, strict=True)}
    return figures
