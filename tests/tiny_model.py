"""A small model with a known answer: a linear-Gaussian encoder, a Bernoulli decoder, in NumPy.

It is the independent oracle: nothing of the service or of ONNX is in it.

    prior      z ~ N(m0, s0^2),  three latents, one group
    likelihood x ~ Bernoulli(sigmoid(z W + b)) over 1x4x4 pixels
    posterior  z ~ N(x A + a, s^2), x = 1 where pixel / 255 > u
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

CHANNELS, SIDE, D = 1, 4, 3
PIXELS = CHANNELS * SIDE * SIDE
CALIBRATION_IMAGES = 200


@dataclass(frozen=True)
class TinyModel:
    """The functions of the bundle, float32 in and out, computed in float64."""

    weights: dict[str, np.ndarray]

    @classmethod
    def create(cls, seed: int = 0) -> TinyModel:
        rng = np.random.default_rng(seed)
        mean, scale = 0.3 * rng.standard_normal(D), 0.5 + rng.random(D)
        W, b = rng.standard_normal((D, PIXELS)), 0.5 * rng.standard_normal(PIXELS)
        A = 0.2 * W.T  # a fair encoder: one linear step towards what the pixels say of z
        weights = {
            "prior_mean": mean,
            "prior_scale": scale,
            "W": W,
            "b": b,
            "A": A,
            "a": mean - special.expit(b + mean @ W) @ A,
            "scale": np.array([0.4, 0.5, 0.6]),
        }
        return cls({name: array.astype(np.float32) for name, array in weights.items()})

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.weights[name].astype(np.float64)
        except KeyError:
            raise AttributeError(name) from None

    def decode(self, z: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        mean = special.expit(z.astype(np.float64) @ self.W + self.b)
        draw = np.where(u < mean, 255, 0).astype(np.uint8)
        shape = (-1, CHANNELS, SIDE, SIDE)
        return {"mean": mean.astype(np.float32).reshape(shape), "draw": draw.reshape(shape)}

    def sample(
        self, eps: np.ndarray, temperature: np.ndarray, u: np.ndarray
    ) -> dict[str, np.ndarray]:
        return self.decode(self.prior_mean + temperature * self.prior_scale * eps, u)

    def posterior_mean(self, image: np.ndarray, u_image: np.ndarray | float = 0.5) -> np.ndarray:
        return binary(image, u_image) @ self.A + self.a

    def encode(
        self, image: np.ndarray, eps: np.ndarray, u_image: np.ndarray | float = 0.5
    ) -> dict[str, np.ndarray]:
        z = self.posterior_mean(image, u_image) + self.scale * eps
        prior_eps = (z - self.prior_mean) / self.prior_scale
        return {"z": z.astype(np.float32), "prior_eps": prior_eps.astype(np.float32)}

    def score(
        self,
        image: np.ndarray,
        owner: np.ndarray,
        eps: np.ndarray,
        u_image: np.ndarray | float = 0.5,
    ) -> dict[str, np.ndarray]:
        z = self.posterior_mean(image, u_image)[owner] + self.scale * eps.astype(np.float64)
        p = special.expit(z @ self.W + self.b)
        log_px_z = stats.bernoulli.logpmf(binary(image, u_image)[owner], p).sum(axis=1)
        kl = self.kl_terms(image, owner, eps, u_image).sum(axis=1)
        return {"log_weight": log_px_z - kl, "log_px_z": log_px_z, "kl": kl[:, None]}

    def evidence(
        self,
        image: np.ndarray,
        owner: np.ndarray,
        eps: np.ndarray,
        u_image: np.ndarray | float = 0.5,
    ) -> dict[str, np.ndarray]:
        scores = self.score(image, owner, eps, u_image)
        del scores["log_px_z"]
        return scores | self.at_zero(image, u_image)

    def at_zero(
        self, image: np.ndarray, u_image: np.ndarray | float = 0.5
    ) -> dict[str, np.ndarray]:
        x = binary(image, u_image)
        p = special.expit(self.posterior_mean(image, u_image) @ self.W + self.b)
        columns = stats.bernoulli.logpmf(x, p).sum(axis=1), np.square(x - p).mean(axis=1)
        residual = (x - p).reshape(-1, SIDE, SIDE)
        return {"residual": residual, "statistics": np.column_stack(columns)}

    def kl_terms(
        self,
        image: np.ndarray,
        owner: np.ndarray,
        eps: np.ndarray,
        u_image: np.ndarray | float = 0.5,
    ) -> np.ndarray:
        """log q - log p of each latent, ``[R, D]``."""
        mean = self.posterior_mean(image, u_image)[owner]
        z = mean + self.scale * eps.astype(np.float64)
        log_p = stats.norm.logpdf(z, self.prior_mean, self.prior_scale)
        return stats.norm.logpdf(z, mean, self.scale) - log_p

    def images(self, n: int, seed: int = 0) -> np.ndarray:
        """Images drawn from the model itself, uint8 ``[n, 1, 4, 4]`` of 0 and 255."""
        rng = np.random.default_rng(seed)
        eps = rng.standard_normal((n, D))
        drawn = self.sample(eps, np.ones((n, 1)), rng.random((n, PIXELS)))["draw"]
        return np.asarray(drawn)

    def calibration(self, samples: int) -> np.ndarray:
        """Sorted IW scores of calibration images. The noise here is NumPy's, not the service's."""
        images = self.images(CALIBRATION_IMAGES, seed=1)
        return np.sort(self.bound(images, samples, seed=2)).astype(np.float32)

    def bound(self, images: np.ndarray, samples: int, seed: int) -> np.ndarray:
        """IW scores of images at noise of NumPy's, ``[n]``."""
        owner = np.repeat(np.arange(len(images)), samples)
        eps = np.random.default_rng(seed).standard_normal((len(owner), D))
        log_weight = self.score(images, owner, eps)["log_weight"].reshape(-1, samples)
        return special.logsumexp(log_weight, axis=1) - np.log(samples)


def binary(image: np.ndarray, u_image: np.ndarray | float) -> np.ndarray:
    """What the model sees, float64 ``[n, PIXELS]``."""
    return (image.reshape(len(image), -1) / np.float32(255) > u_image).astype(np.float64)
