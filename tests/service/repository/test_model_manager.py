"""Loading and unloading while requests are served: one change at a time, and no answer is lost."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.bundle import load_bundle
from service.errors import Conflict, ShuttingDown, UnknownModel


def test_a_new_version_is_loaded_beside_the_old_one_and_answers(site, root, edition, put):
    put(edition("1.10.0"), root / "b")
    change = site.load("b")
    assert (change.change, change.model, change.version) == ("loaded", "tiny", "1.10.0")
    assert change.bundle == load_bundle(root / "b").hash
    assert change.replaced is None
    assert site.versions() == ["1.10.0", "1.9.0"]
    assert site.answering() == "1.10.0"
    assert site.answering(model="tiny@1.9.0") == "1.9.0"
    assert site.answering(model="tiny", version="1.9.0") == "1.9.0"
    assert site.metric("iafvae_model_changes_total", model="tiny", change="loaded") == 2
    assert site.metric("iafvae_models", state="loaded") == 2


def test_another_bundle_in_the_same_directory_is_swapped_in(site, root, edition, put):
    old = load_bundle(root / "a").hash
    put(edition("1.9.0", build="again"), root / "a")  # the same version, other weights
    change = site.load("a")
    assert (change.change, change.replaced) == ("swapped", old)
    assert change.bundle == load_bundle(root / "a").hash != old
    put(edition("1.10.0"), root / "a")  # another version
    assert site.load("a").change == "swapped"
    assert site.versions() == ["1.10.0"]
    assert site.metric("iafvae_model_changes_total", model="tiny", change="swapped") == 2
    page = site.client.get("/metrics").text
    assert sum(line.startswith("iafvae_model_info{") for line in page.splitlines()) == 1


def test_what_is_loaded_already_is_left_alone_but_reloaded_on_demand(site):
    runtime = site.registry.find().runtime
    assert site.load("a").change == "unchanged"
    assert site.registry.find().runtime is runtime
    change = site.run(site.manager.reload("tiny"))
    assert change.change == "swapped"
    assert change.bundle == change.replaced
    assert site.registry.find().runtime is not runtime


def test_a_directory_that_was_renamed_is_the_same_model(site, root):
    (root / "a").rename(root / "z")
    assert site.load("z").change == "swapped"
    assert [m.directory for m in site.registry.models] == ["z"]


def test_the_documentation_follows_the_default_model(site, root, edition, put):
    def example():
        paths = site.client.get("/openapi.json").json()["paths"]
        parameters = paths["/v1/models/{name}/versions/{version}"]["get"]["parameters"]
        return [parameter["example"] for parameter in parameters]

    assert example() == ["tiny", "1.9.0"]
    put(edition("1.10.0"), root / "a")
    site.load("a")
    assert example() == ["tiny", "1.10.0"]


# ------------------------------------------------------------------ one at a time


@pytest.fixture
def slow(site, monkeypatch):
    """Make loading wait for `go`; `begun` tells when it does."""
    begun, go = threading.Event(), threading.Event()
    opened = site.manager.store.open

    def wait(path):
        begun.set()
        assert go.wait(30)
        return opened(path)

    monkeypatch.setattr(site.manager.store, "open", wait)
    yield begun, go
    go.set()


def test_a_second_change_meanwhile_is_refused_and_requests_are_served(site, slow):
    begun, go = slow
    first = asyncio.run_coroutine_threadsafe(
        site.manager.reload("tiny"), site.client.transport.loop
    )
    assert begun.wait(10)
    with pytest.raises(Conflict, match="loading a is under way"):
        site.load("a")
    assert site.answering() == "1.9.0"
    go.set()
    assert first.result(30).change == "swapped"


def test_a_change_goes_on_when_whoever_asked_has_gone(site, slow):
    begun, go = slow
    runtime = site.registry.find().runtime

    async def main():
        task = asyncio.create_task(site.manager.reload("tiny"))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.wait([task])
        go.set()
        await asyncio.wait([site.manager._task])

    site.run(main())
    assert site.registry.find().runtime is not runtime


def test_a_service_that_stops_drops_what_it_was_loading(site, slow):
    begun, go = slow

    async def main():
        task = asyncio.create_task(site.manager.reload("tiny"))
        await asyncio.to_thread(begun.wait, 10)
        await asyncio.wait_for(site.manager.stop(), 5)
        assert task.cancelled()
        go.set()
        site.registry.drain()
        with pytest.raises(ShuttingDown):
            await site.manager.reload("tiny")

    site.run(main())


def test_a_model_is_unloaded_when_its_requests_are_answered(sites, serve, root, edition, put):
    site = sites.Site(serve(models=root, max_batch_rows=1))  # the request takes a while
    put(edition("1.10.0"), root / "b")
    site.load("b")

    async def main():
        runtime = site.registry.find("tiny@1.9.0").runtime

        async def request():
            with site.registry.find("tiny@1.9.0") as held:
                return await held.sample(300, seed=0, temperature=[1.0])

        task = asyncio.create_task(request())
        await asyncio.sleep(0)
        await site.manager.unload("tiny@1.9.0")
        with pytest.raises(UnknownModel):
            site.registry.find("tiny@1.9.0")
        assert not task.done()
        assert len((await task).images) == 300
        await site.registry.wait_retired()
        assert not runtime.ready

    site.run(main())
