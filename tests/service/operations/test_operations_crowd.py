"""The same call gives the same bytes: alone, in a crowd, split, and on another replica."""

from __future__ import annotations

import asyncio

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.onnxruntime_engine import Engine
from service.operations.model import Model

D = 3


@settings(max_examples=10)
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


def test_requests_of_one_batch_are_judged_together_and_as_alone(
    perform, loaded, tiny_model, monkeypatch
):
    """The same bits, also where a caller leaves; one failure is everybody's, and then over."""
    images = tiny_model.images(9, seed=4)
    asked = [images[:1], images[1:4], images[4:5], images[5:]]
    reference, sizes = type(loaded.bundle.reference), []
    judge = reference.judge

    def counted(self, k, measured):
        sizes.append(len(measured.statistics))
        return judge(self, k, measured)

    def failing(self, k, measured):
        raise MemoryError("none left")

    def at_once(runtime, count):
        """Answers arrive in one turn of the event loop."""
        submit, arrived, all_are = type(runtime.scheduler).submit, [], asyncio.Event()

        async def waits(*args, **kwargs):
            arrived.append(await submit(runtime.scheduler, *args, **kwargs))
            job = arrived[-1]
            if len(arrived) == count:
                all_are.set()
            await all_are.wait()
            return job

        monkeypatch.setattr(runtime.scheduler, "submit", waits)
        monkeypatch.setattr(runtime.scheduler, "jobs", {"others are still awaited"})

    async def use(runtime):
        alone = [await runtime.score(each) for each in asked]
        at_once(runtime, 5)
        together = (asyncio.ensure_future(runtime.score(each)) for each in [*asked, images[:1]])
        *crowd, leaves = together
        monkeypatch.setattr(runtime, "_unjudged", _Leaving(leaves))
        monkeypatch.setattr(reference, "judge", counted)
        judged = await asyncio.gather(*crowd)
        monkeypatch.setattr(reference, "judge", failing)
        at_once(runtime, 4)
        scores = (runtime.score(each) for each in asked)
        failed = await asyncio.gather(*scores, return_exceptions=True)
        monkeypatch.undo()
        return alone, judged, leaves.cancelled(), failed, await runtime.score(asked[1])

    alone, judged, left, failed, later = perform(use)
    assert left
    assert sizes == [10]
    for one, other in zip((*alone, alone[1]), (*judged, later), strict=True):
        assert np.array_equal(one.p_value, other.p_value)
        for name, p in one.evidence.items():
            assert np.array_equal(p, other.evidence[name]), name
    assert [type(error) for error in failed] == [MemoryError] * 4


class _Leaving(dict):
    """Where requests wait to be judged; the task `leaves` goes as soon as they are taken."""

    def __init__(self, leaves):
        super().__init__()
        self._leaves = leaves

    def pop(self, k):
        self._leaves.cancel()
        return super().pop(k)


def test_two_replicas_agree(tiny_bundle):
    async def main(workers):
        runtime = Model.load(tiny_bundle, provider="cpu", workers=workers)
        await runtime.start()
        got = await runtime.sample(50, seed=1, temperature=[1.0], output="draw")
        await runtime.stop()
        return got.images.tobytes()

    assert asyncio.run(main(1)) == asyncio.run(main(3))
    assert Engine.backend == "onnxruntime"
