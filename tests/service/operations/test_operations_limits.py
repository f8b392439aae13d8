"""Arguments that are refused by name, deadlines, and the life of a runtime."""

from __future__ import annotations

import asyncio
import math
import time

import numpy as np
import pytest

from service.errors import (
    DeadlineExceeded,
    InvalidInput,
    NonFiniteInput,
    ShuttingDown,
    WrongDtype,
    WrongShape,
)
from service.operations.model import Model

D = 3
PICTURES = np.zeros((2, 1, 4, 4), dtype=np.uint8)
LATENTS = np.zeros((2, D), dtype=np.float32)


def score(runtime, images, k=16, alpha=0.01):
    return runtime.score(images, importance_samples=k, seed=0, alpha=alpha)


@pytest.mark.parametrize(
    ("use", "error", "words"),
    [
        (lambda r: r.sample(0, seed=0, temperature=[1.0]), InvalidInput, "n must be at least 1"),
        (lambda r: r.sample(1, seed=-1, temperature=[1.0]), InvalidInput, "seed must be from 0"),
        (lambda r: r.sample(1, seed=2**63, temperature=[1.0]), InvalidInput, "seed must be"),
        (lambda r: r.sample(1, seed=0, temperature=[-0.1]), InvalidInput, "negative"),
        (lambda r: r.sample(1, seed=0, temperature=[1e39]), InvalidInput, "beyond float32"),
        (lambda r: r.sample(1, seed=0, temperature=[math.nan]), NonFiniteInput, "finite"),
        (
            lambda r: r.sample(1, seed=0, temperature=[1, 1]),
            InvalidInput,
            r"latent group \(z\), not 2",
        ),
        (lambda r: r.sample(1, seed=0, temperature=[1], output="png"), InvalidInput, "output"),
        (lambda r: r.sample_each([], temperature=np.ones((0, 1))), InvalidInput, "seeds"),
        (lambda r: r.sample_each([1], temperature=np.ones((2, 1))), InvalidInput, "one row"),
        (lambda r: r.decode(LATENTS[:, :2]), WrongShape, r"\[n, 3\]"),
        (lambda r: r.decode(LATENTS[0]), WrongShape, r"\[n, 3\]"),
        (lambda r: r.decode(LATENTS[:, None]), WrongShape, r"\[n, 3\]"),
        (lambda r: r.decode(LATENTS[:0]), InvalidInput, "number of latents"),
        (lambda r: r.decode(LATENTS.astype(np.float64)), WrongDtype, "float32"),
        (lambda r: r.decode(LATENTS + np.float32(np.inf)), NonFiniteInput, "NaN or infinity"),
        (lambda r: r.encode(PICTURES[:, :, :3]), WrongShape, r"\[n, 1, 4, 4\]"),
        (lambda r: r.encode(PICTURES[0]), WrongShape, r"\[n, 1, 4, 4\]"),
        (lambda r: r.encode(PICTURES.astype(np.float32)), WrongDtype, "uint8"),
        (lambda r: r.encode(PICTURES, seed=-1), InvalidInput, "seed"),
        (lambda r: score(r, PICTURES[:0]), WrongShape, r"\[n, 1, 4, 4\]"),
        (lambda r: score(r, PICTURES, 0), InvalidInput, "importance_samples"),
        (lambda r: score(r, PICTURES, alpha=1.5), InvalidInput, "alpha"),
        (lambda r: score(r, PICTURES, alpha=math.nan), InvalidInput, "alpha"),
        (lambda r: score(r, PICTURES, alpha=0.0), InvalidInput, "alpha"),
        (lambda r: score(r, PICTURES, alpha=1.0), InvalidInput, "alpha"),
        (lambda r: r.score(PICTURES, fdr=1.0), InvalidInput, "fdr must be between 0 and 1"),
        (lambda r: r.reconstruct(PICTURES, output="jpeg"), InvalidInput, "output"),
        (lambda r: r.interpolate(PICTURES[:1], n=5), InvalidInput, "two images"),
        (lambda r: r.interpolate(PICTURES, n=1), InvalidInput, "n must be at least 2"),
        (lambda r: r.interpolate(seeds=(1, 2), seed=-1), InvalidInput, "seed must be from 0"),
        (lambda r: r.interpolate(seeds=(1, 2), seed=2**63), InvalidInput, "seed must be from 0"),
        *(
            (use, InvalidInput, 'output must be "mean" or "draw"')
            for use in (
                lambda r: r.sample(1, output="both"),
                lambda r: r.decode(LATENTS, output="both"),
                lambda r: r.reconstruct(PICTURES, output="both"),
                lambda r: r.interpolate(seeds=(1, 2), output="both"),
            )
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(perform, use, error, words):
    with pytest.raises(error, match=words):
        perform(use)


def test_pixels_of_fewer_levels_are_below_their_number(tiny, tmp_path, model_bench):
    image = tiny.tiny_manifest()["image"] | {"levels": 16}
    bundle = tiny.write_tiny_bundle(tmp_path / "levels", image=image)
    perform = model_bench.performer(Model.load(bundle.path, provider="cpu", workers=1))
    assert len(perform(lambda r: r.encode(PICTURES + np.uint8(15))).latents) == 2
    with pytest.raises(InvalidInput, match="pixels must be below 16"):
        perform(lambda r: r.encode(PICTURES + np.uint8(16)))


def test_calls_carry_their_deadline(perform):
    late = time.monotonic() - 1.0
    with pytest.raises(DeadlineExceeded):
        perform(lambda runtime: runtime.decode(LATENTS, deadline=late))


def test_life(tiny_bundle):
    seen = []

    class Observer:
        def taken(self, caller, rows):
            assert (caller, rows > 0) == ("", True)

        def batch(self, *arguments):
            seen.append(arguments)

        def dropped(self, operation, rows, reason):
            raise AssertionError

        def retried(self, operation, runs):
            raise AssertionError

    def observe(name):
        assert name == "tiny"
        return Observer()

    async def main():
        runtime = Model.load(
            tiny_bundle, provider="cpu", workers=1, max_batch_rows=10, observe=observe
        )
        assert (runtime.name, runtime.provider, runtime.precision) == ("tiny", "cpu", "float32")
        assert runtime.healthy
        assert not runtime.ready
        with pytest.raises(ShuttingDown):
            await runtime.decode(LATENTS)
        await runtime.start()
        assert runtime.ready
        await runtime.sample(25, seed=0, temperature=[1.0])
        await runtime.stop()
        assert not runtime.ready

    asyncio.run(main())
    # Blocks of 16: the tiny model's widths are not multiples of a vector register.
    assert [batch[:3] for batch in seen] == [
        ("sample", 10, 6),
        ("sample", 10, 6),
        ("sample", 5, 11),
    ]
