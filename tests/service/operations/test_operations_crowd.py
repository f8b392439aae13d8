"""The same call gives the same bytes: alone, in a crowd, split, and on another replica."""

from __future__ import annotations

import asyncio

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.onnxruntime_engine import Engine
from service.operations.model import Model

D = 3


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_the_same_bytes_alone_in_a_crowd_and_split(perform, tiny_model, model_bench, data):
    """Every request of a crowd, with batches of 16 rows and two workers, equals itself alone."""
    kinds = st.sampled_from(["sample", "decode", "encode", "score", "reconstruct"])
    crowd = data.draw(
        st.lists(
            st.tuples(kinds, st.integers(1, 20), st.integers(0, 3), st.integers(1, 9)),
            min_size=2,
            max_size=8,
        )
    )
    pool = tiny_model.images(20, seed=6)
    z = np.random.default_rng(1).standard_normal((20, D)).astype(np.float32)

    async def one(runtime, kind, n, seed, k, caller):
        output = "draw" if k % 2 else "mean"
        if kind == "sample":
            images = await runtime.sample(
                n, seed=seed, temperature=[0.5 * k], output=output, caller=caller
            )
            return images.images.tobytes()
        if kind == "decode":
            return (
                await runtime.decode(z[:n], output=output, seed=seed, caller=caller)
            ).images.tobytes()
        if kind == "encode":
            coded = await runtime.encode(pool[:n], seed=seed or None, caller=caller)
            return coded.latents.tobytes() + coded.prior_eps.tobytes()
        if kind == "score":
            got = await model_bench.score(runtime, pool[:n], k, seed, caller=caller)
            return got.log_likelihood_nats.tobytes() + got.kl_nats.tobytes()
        images = await runtime.reconstruct(
            pool[:n], seed=seed or None, output=output, caller=caller
        )
        return images.images.tobytes()

    async def use(runtime):
        alone = [await one(runtime, *request, "") for request in crowd]
        together = await asyncio.gather(
            *(one(runtime, *request, str(i % 3)) for i, request in enumerate(crowd))
        )
        return alone, together

    alone, together = perform(use)
    assert alone == list(together)


def test_an_image_scores_the_same_wherever_it_stands(perform, tiny_model, model_bench):
    images = tiny_model.images(30, seed=2)

    async def use(runtime):
        forward = await model_bench.score(runtime, images, 7)
        backward = await model_bench.score(runtime, images[::-1], 7)
        single = await model_bench.score(runtime, images[13:14], 7)
        return forward, backward, single

    forward, backward, single = perform(use)
    assert np.array_equal(forward.log_likelihood_nats, backward.log_likelihood_nats[::-1])
    assert single.log_likelihood_nats[0] == forward.log_likelihood_nats[13]


def test_single_samples_of_different_seeds_share_a_batch_and_keep_their_scores(perform, tiny_model):
    """K = 1 rows of several seeds are assembled in a way of their own."""
    images = tiny_model.images(6, seed=4)
    asked = [(images[i : i + 2], seed) for i, seed in enumerate((0, 1, 5, 1))]

    async def use(runtime):
        def score(pixels, seed, caller):
            return runtime.score(pixels, importance_samples=1, seed=seed, caller=caller)

        alone = [await score(*each, "") for each in asked]
        crowd = [score(*each, str(i)) for i, each in enumerate(asked)]
        together = await asyncio.gather(*crowd)
        return alone, together

    alone, together = perform(use)
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.log_likelihood_nats, other.log_likelihood_nats)
    assert alone[1].log_likelihood_nats[1] != alone[2].log_likelihood_nats[0], "another seed's"


def test_two_replicas_agree(tiny_bundle):
    async def main(workers):
        runtime = Model.load(tiny_bundle, provider="cpu", workers=workers)
        await runtime.start()
        got = await runtime.sample(50, seed=1, temperature=[1.0], output="draw")
        await runtime.stop()
        return got.images.tobytes()

    assert asyncio.run(main(1)) == asyncio.run(main(3))
    assert Engine.backend == "onnxruntime"
