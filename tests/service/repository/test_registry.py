"""Which model answers, and what becomes of one that is taken out while somebody still has it."""

from __future__ import annotations

import asyncio
import gc
import weakref

import numpy as np
import onnxruntime
import pytest

from service.errors import Conflict, InvalidInput, ShuttingDown, UnknownModel
from service.operations.model import Model
from service.repository import registry as registry_module
from service.repository.registry import LoadedModel, Registry


@pytest.fixture
def load(edition):
    """A loaded model of a version: `load("1.9.0", name="tiny")`; not started."""

    def open_one(version, **what):
        runtime = Model.load(edition(version, **what), provider="cpu", workers=1)
        return LoadedModel(runtime, f"{runtime.name}-{version}")

    return open_one


def registry_of(*models):
    registry = Registry(drain_seconds=5.0)
    registry.exchange(new=models)
    return registry


async def drawn(runtime, seed=7):
    return (await runtime.sample(3, seed=seed, temperature=[1.0])).images


def by_itself(path):
    """What the bundle at `path` draws in a runtime of its own."""

    async def draw():
        runtime = Model.load(path, provider="cpu", workers=1)
        await runtime.start()
        images = await drawn(runtime)
        await runtime.stop()
        return images

    return asyncio.run(draw())


def live_sessions():
    """ONNX Runtime's sessions of this process, whoever holds them."""
    # Not isinstance: objects of other libraries warn when they are asked for their class.
    found = [o for o in gc.get_objects() if type(o) is onnxruntime.InferenceSession]
    return {id(session): session for session in found}


def test_the_newest_release_answers(load):
    models = {v: load(v) for v in ("1.9.0", "2.0.0-rc.1", "1.10.0")}
    registry = registry_of(*models.values())
    assert registry.default == "tiny"
    assert registry.versions("tiny") == ("2.0.0-rc.1", "1.10.0", "1.9.0")
    newest = models["1.10.0"].runtime
    assert registry.find().runtime is registry.find("tiny").runtime is newest
    for version, model in models.items():
        assert registry.find(f"tiny@{version}").runtime is model.runtime
        assert (
            registry.find("tiny", version).runtime
            is registry.find(None, version).runtime
            is model.runtime
        )
    assert [m.version for m in registry.models] == ["2.0.0-rc.1", "1.10.0", "1.9.0"]


def test_pre_releases_answer_where_there_is_no_release(load):
    registry = registry_of(load("2.0.0-rc.2"), load("2.0.0-rc.10"))
    assert registry.find().runtime.bundle.manifest.version == "2.0.0-rc.10"


def test_what_is_unknown_is_said_with_what_is_known(load):
    registry = registry_of(load("1.9.0"), load("3", name="other"))
    with pytest.raises(UnknownModel, match="no model 'none' is loaded; there are other, tiny"):
        registry.find("none")
    with pytest.raises(UnknownModel, match=r"no version '2' of tiny is loaded; there are 1\.9\.0"):
        registry.find("tiny@2")
    with pytest.raises(UnknownModel):
        registry.versions("none")
    with pytest.raises(InvalidInput, match="give one"):
        registry.find("tiny@2", "3")
    with pytest.raises(ShuttingDown, match="no model is loaded yet"):
        Registry().find()


def test_a_pinned_version_answers_until_it_is_unpinned(load):
    others = [load(version, name="other") for version in ("1", "2")]
    registry = registry_of(load("1.9.0"), load("1.10.0"), *others)
    registry.pin("other", "1")
    registry.pin("tiny", "1.9.0")
    assert registry.find("tiny").runtime.bundle.manifest.version == "1.9.0"
    assert registry.pinned("tiny") == "1.9.0"
    with pytest.raises(UnknownModel):
        registry.pin("tiny", "9")
    assert registry.find("tiny").runtime.bundle.manifest.version == "1.9.0", (
        "a refused pin changes nothing"
    )
    registry.pin("tiny", None)
    assert registry.find("tiny").runtime.bundle.manifest.version == "1.10.0"
    assert registry.pinned("other") == registry.find("other").version == "1", "as it was"


def test_a_pin_may_name_its_version_in_the_reference(load):
    async def main():
        registry = registry_of(load("1.9.0"), load("1.10.0"))
        registry.pin("tiny@1.9.0", None)
        assert registry.find("tiny").version == "1.9.0"
        assert registry.pinned("tiny") == "1.9.0"
        with pytest.raises(InvalidInput, match="give one"):
            registry.pin("tiny@1.9.0", "1.10.0")
        registry.pin("tiny", None)
        registry.exchange([registry.find("tiny@1.9.0")])
        await registry.wait_retired()
        assert registry.versions("tiny") == ("1.10.0",)

    asyncio.run(main())


def test_another_default(load):
    registry = registry_of(load("1.9.0"), load("3", name="other"))
    assert registry.find().runtime.name == "tiny", "the first that came"
    registry.set_default("other")
    assert registry.find().runtime.name == "other"
    with pytest.raises(UnknownModel):
        registry.set_default("none")


def test_what_others_count_on_is_not_taken_out(load):
    async def main():
        old, new, other = load("1.9.0"), load("1.10.0"), load("3", name="other")
        registry = registry_of(old, new, other)
        registry.pin("tiny", "1.9.0")
        before = registry.models
        with pytest.raises(Conflict, match=r"tiny@1\.9\.0 is pinned, so it stays: unpin tiny"):
            registry.exchange([old])
        with pytest.raises(Conflict, match="tiny is the default model, so it stays"):
            registry.exchange([old, new])
        with pytest.raises(Conflict, match=r"both named 'tiny', version 1\.10\.0"):
            registry.exchange([], [load("1.10.0")])
        assert registry.models == before
        assert registry.retiring == 0
        registry.exchange([other])
        assert [model.name for model in registry.models] == ["tiny", "tiny"]
        await registry.stop(1.0)

    asyncio.run(main())


def test_who_got_a_model_before_it_was_replaced_is_still_served_by_it(load, edition):
    """The request gets its runtime, the swap happens, and only then is its first row submitted."""
    wanted = {v: by_itself(edition(v)) for v in ("1.9.0", "1.10.0")}
    assert not np.array_equal(wanted["1.9.0"], wanted["1.10.0"])

    async def main():
        old, new = load("1.9.0"), load("1.10.0")
        registry = registry_of(old)
        await registry.start()
        await new.runtime.start()
        has_it, swapped = asyncio.Event(), asyncio.Event()

        async def request():
            with registry.find("tiny") as runtime:
                has_it.set()
                await swapped.wait()
                return await drawn(runtime), await drawn(runtime)

        task = asyncio.create_task(request())
        await has_it.wait()
        registry.exchange([old], [new])
        after = await asyncio.create_task(drawn(registry.find("tiny").runtime))
        assert np.array_equal(after, wanted["1.10.0"])
        for _ in range(20):
            await asyncio.sleep(0)
        assert registry.retiring == 1
        assert old.runtime.ready, "still accepting"
        swapped.set()
        for images in await task:
            assert np.array_equal(images, wanted["1.9.0"])
        await registry.wait_retired()
        assert registry.retiring == 0
        assert not old.runtime.ready
        await registry.stop(1.0)

    asyncio.run(main())


def test_what_waits_in_the_queue_is_computed_before_the_end(load):
    async def main():
        old, new = load("1.9.0"), load("1.10.0")
        registry = registry_of(old)
        await registry.start()
        await new.runtime.start()

        async def request(seed):
            with registry.find() as runtime:
                return await runtime.sample(200, seed=seed, temperature=[1.0])

        tasks = [asyncio.create_task(request(seed)) for seed in range(30)]
        await asyncio.sleep(0)  # all of them are queued
        registry.exchange([old], [new])
        answers = await asyncio.gather(*tasks)
        assert all(len(answer.images) == 200 for answer in answers)
        await registry.stop(1.0)

    asyncio.run(main())


def test_a_model_that_was_replaced_does_not_wait_for_ever(load, monkeypatch):
    """Whoever still holds it then is cancelled: a stream that is hardly read."""
    monkeypatch.setattr(registry_module, "RETIRED_SECONDS", 0.05)

    async def main():
        old, new = load("1.9.0"), load("1.10.0")
        registry = registry_of(old)
        await registry.start()
        await new.runtime.start()

        async def request():
            with registry.find():
                await asyncio.Event().wait()

        task = asyncio.create_task(request())
        await asyncio.sleep(0)
        registry.exchange([old], [new])
        await registry.wait_retired()
        assert task.cancelled()
        assert registry.retiring == 0
        await registry.stop(1.0)

    asyncio.run(main())


@pytest.fixture
def no_collector():
    """Only what nobody refers to any more goes, at once."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.usefixtures("no_collector")
def test_what_was_taken_out_is_freed_when_its_last_request_ends(load, fails):
    """Also where the request fails or is cancelled: the end of its lease is what counts."""

    async def main():
        before = set(live_sessions())
        old = load("1.9.0")
        sessions = [weakref.ref(s) for key, s in live_sessions().items() if key not in before]
        assert len(sessions) >= 4, "one for each operation at least"
        new = load("1.10.0")
        registry = registry_of(old)
        await registry.start()
        await new.runtime.start()
        go = asyncio.Event()

        async def request():
            with registry.find() as runtime:
                await drawn(runtime)
                await go.wait()
                if fails:
                    raise RuntimeError("of the request")

        stays, cancelled = asyncio.create_task(request()), asyncio.create_task(request())
        await asyncio.sleep(0.05)
        registry.exchange([old], [new])
        cancelled.cancel()
        await asyncio.sleep(0.05)
        assert all(session() is not None for session in sessions)
        go.set()
        await asyncio.gather(stays, cancelled, return_exceptions=True)
        await registry.wait_retired()
        assert registry.retiring == 0
        assert all(session() is None for session in sessions), "freed, not left to the collector"
        await registry.stop(1.0)

    asyncio.run(main())


def test_readiness_is_the_default_models(load):
    async def main():
        first, other = load("1.9.0"), load("3", name="other")
        registry = registry_of(first, other)
        assert not registry.ready, "not started"
        await first.runtime.start()
        assert registry.ready, "whatever the other one does"
        registry.drain()
        assert not registry.ready
        await registry.stop(1.0)

    asyncio.run(main())


def test_a_fault_of_a_model_that_is_being_replaced_is_the_process_s(load):
    """What hangs the device hangs it for all: only a new process helps, whoever answers now."""

    async def main():
        old, new = load("1.9.0"), load("1.10.0")
        registry = registry_of(old)
        await registry.start()
        await new.runtime.start()
        with registry.find():
            registry.exchange([old], [new])
            assert registry.healthy
            old.runtime.scheduler.healthy = False
            assert not registry.healthy
            assert not registry.ready
            old.runtime.scheduler.healthy = True
        await registry.stop(1.0)

    asyncio.run(main())


def test_the_end_of_the_process_does_not_wait_for_who_holds_a_replaced_model(load):
    async def main():
        old, new = load("1.9.0"), load("1.10.0")
        registry = registry_of(old)
        await registry.start()
        await new.runtime.start()

        async def forever():
            with registry.find():
                await asyncio.Event().wait()

        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        registry.exchange([old], [new])
        await asyncio.wait_for(registry.stop(1.0), 5.0)
        assert not old.runtime.ready
        assert not new.runtime.ready
        task.cancel()

    asyncio.run(main())
