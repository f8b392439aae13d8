"""What can be evaluated: a model's weights, and a bundle's graphs through the service's engine.

Both score draws of the latents for a few images at once, and say how many bytes that takes.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.config import BINARY_LIKELIHOODS
from model.contract import DensityModel, Features
from service.bundle import Bundle
from service.engine.choice import make_engine
from service.engine.options import EngineOptions, Provider

__all__ = ["BundleScorer", "Facts", "ModelScorer", "Scorer", "Scores"]

FLOAT32 = 4
# So many arrays of the largest activation's size live at once in a row's pass, at most ...
LIVE_ACTIVATIONS = 8
# ... and so many of the latent's: noise, its copy, z, prior_eps, z squared, sums in float64.
LIVE_LATENTS = 10
# Of a graph nothing is known but its images and latents: as many arrays of an image's size.
GRAPH_ACTIVATIONS = 64
CPU_ROWS, CUDA_ROWS = 512, 8192  # beyond which nothing is gained


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an evaluation must know: shapes, names, and the size of one row's computation.

    `latents`: size of each latent group, top down; `image_bytes` and `row_bytes`: memory for one
    image and for one draw of one image, estimated from above; `rows`: how many draws are worth
    computing at once; `backend`: what computes, in words.
    """

    image_shape: tuple[int, int, int]
    likelihood: str
    latents: dict[str, int]
    kl_groups: tuple[str, ...]
    image_bytes: int
    row_bytes: int
    rows: int
    backend: str

    @property
    def dim(self) -> int:
        """The number of latents."""
        return sum(self.latents.values())

    @property
    def binary(self) -> bool:
        """Whether the pixels are black or white."""
        return self.likelihood in BINARY_LIKELIHOODS

    @property
    def dims(self) -> int:
        """The number of subpixels."""
        return math.prod(self.image_shape)


@dataclass(frozen=True)
class Scores:
    """k draws for n images: `log_px_z [k, n]`, `kl [k, n, G]`, in nats; `z [k, n, D]`.

    D is 0 where the latents are not to be seen. Where the prior is a flow, the top group of `z` is
    given in the prior's noise, N(0, I).
    """

    log_px_z: Tensor
    kl: Tensor
    z: Tensor


class Scorer(Protocol):
    """Scores draws of the latents for images."""

    facts: Facts

    def images(self, pixels: NDArray[np.uint8]) -> Any:
        """What is computed once for images uint8 [n, C, H, W], of a binary model 0 and 255."""

    def score(self, images: Any, eps: Tensor) -> Scores:
        """Score the draws made from `eps` [k, n, D] (on the CPU)."""


class ModelScorer:
    """A model on the device where it is; its bottom-up network runs once per image."""

    def __init__(self, model: DensityModel) -> None:
        self.device = next(model.parameters()).device
        self.model: DensityModel = model.fold().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = {group.name: group.size for group in model.layout.groups}
        image_bytes, row_bytes = self._measure()
        self.facts = Facts(
            image_shape=model.config.image_shape,
            likelihood=model.likelihood.kind,
            latents=groups,
            kl_groups=model.kl_groups,
            image_bytes=image_bytes,
            row_bytes=row_bytes,
            rows=CPU_ROWS if self.device.type == "cpu" else CUDA_ROWS,
            backend="float32",
        )

    @torch.inference_mode()
    def _measure(self) -> tuple[int, int]:
        """Bytes for an image and for a row, from the arrays that one row's pass makes."""
        largest = 0

        def note(_module: nn.Module, _args: object, output: object) -> None:
            nonlocal largest
            if isinstance(output, Tensor):
                largest = max(largest, output.nbytes)

        handles = [module.register_forward_hook(note) for module in self.model.modules()]
        try:
            shape = (1, *self.model.config.image_shape)
            images = self.images(np.zeros(shape, np.uint8))
            self.score(images, torch.zeros(1, 1, self.model.layout.dim))
        finally:
            for handle in handles:
                handle.remove()
        x, features = images
        latent = LIVE_LATENTS * FLOAT32 * self.model.layout.dim
        once = x.nbytes + sum(feature.nbytes for feature in features)
        return once + latent, once + latent + LIVE_ACTIVATIONS * largest

    def images(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Features]:
        """What the likelihood reads [n, C, H, W], and the bottom-up features."""
        x = self.model.likelihood.from_pixels(torch.from_numpy(pixels).to(self.device))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # all of float32's digits
            return x, self.model.bottom_up(x)

    def score(self, images: tuple[Tensor, Features], eps: Tensor) -> Scores:
        """Score the draws, with their latents, on the model's device."""
        (x, features), (k, n, _) = images, eps.shape
        rows = tuple(_repeat(feature, k) for feature in features)  # [k n, ...]
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            inference = self.model.infer(rows, eps.flatten(0, 1).to(self.device))
        log_px_z = self.model.likelihood.log_prob(inference.params, _repeat(x, k))
        kl = self.model.group_kl(inference.kl.double())
        z = inference.z
        if not self.model.prior.elementwise:
            top = self.model.layout.groups[0].size
            z = torch.cat([inference.prior_eps[:, :top], z[:, top:]], dim=1)
        return Scores(log_px_z.view(k, n), kl.view(k, n, -1), z.view(k, n, -1))


def _repeat(t: Tensor, k: int) -> Tensor:
    """[n, ...] -> [k n, ...], all images k times over; a view where k is 1."""
    return t.expand(k, *t.shape).flatten(0, 1)


class BundleScorer:
    """A bundle's `score` graph, computed by the engine that serves it.

    The graph gives no latents, so that active units cannot be counted.
    """

    def __init__(self, bundle: Bundle, *, provider: Provider = "auto", threads: int = 1) -> None:
        manifest = bundle.manifest
        latents = {group.name: group.dim for group in manifest.latent.groups}
        latent = LIVE_LATENTS * FLOAT32 * manifest.latent.dim
        image = FLOAT32 * manifest.image.dims
        rows = CPU_ROWS // 4
        options = EngineOptions(provider=provider, threads=threads, max_rows=rows)
        self.engine = make_engine(bundle, options)
        self.facts = Facts(
            image_shape=manifest.image.shape,
            likelihood=manifest.likelihood.kind,
            latents=latents,
            kl_groups=manifest.kl_groups,
            image_bytes=image,
            row_bytes=latent + GRAPH_ACTIVATIONS * image,
            rows=rows,
            backend=f"{manifest.precision}, ONNX Runtime on {self.engine.provider}",
        )

    def images(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The images as they are: the graph runs its bottom-up network once per image and call."""
        return pixels

    def score(self, images: NDArray[np.uint8], eps: Tensor) -> Scores:
        """Score the draws; a graph gives no latents."""
        k, n, dim = eps.shape
        owner = np.tile(np.arange(n, dtype=np.int64), k)
        noise: NDArray[np.float32] = eps.reshape(k * n, dim).numpy()
        arrays: dict[str, NDArray[Any]] = {"image": images, "owner": owner, "eps": noise}
        if self.facts.binary:
            # Black and white pixels stay what they are whatever it is.
            arrays["u_image"] = np.full((n, self.facts.dims), 0.5, np.float32)
        outputs = self.engine.run("score", arrays)
        log_px_z, kl = (torch.from_numpy(outputs[name]) for name in ("log_px_z", "kl"))
        return Scores(log_px_z.view(k, n), kl.view(k, n, -1).double(), eps[..., :0])
