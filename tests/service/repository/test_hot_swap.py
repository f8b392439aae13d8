"""A real server under steady load while its bundle is swapped: no answer is lost, late or wrong."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time

import httpx
import numpy as np
import pytest

from service.api.security.keys import key_line
from service.bundle import load_bundle
from service.codecs.npy import encode_npy
from service.operations.model import Model

SWAPS = 20
NPY = "application/x-npy"
SWAPPED = 'iafvae_model_changes_total{change="swapped",model="tiny"}'
RETIRING = 'iafvae_models{state="retiring"}'
KEYED = {"authorization": "Bearer boss"}
IMAGES = np.random.default_rng(5).integers(0, 256, (40, 1, 4, 4), np.uint8)
# Quick ones, one of many batches, and one of two steps: whatever a request is at, swaps strike it.
REQUESTS = {
    "sample": ("/v1/sample?seed=3&n=5", b""),
    "score": ("/v1/score?importance_samples=16&seed=1", encode_npy(IMAGES)),
    "reconstruct": ("/v1/reconstruct", encode_npy(IMAGES)),
    "encode": ("/v1/encode?seed=2", encode_npy(IMAGES[:1])),
}


async def _answers(runtime):
    """What the requests must give, from the model without a server."""
    await runtime.start()
    sampled = await runtime.sample(5, seed=3, temperature=[1.0])
    scored = await runtime.score(IMAGES, importance_samples=16, seed=1, alpha=0.01)
    rebuilt = await runtime.reconstruct(IMAGES)
    coded = await runtime.encode(IMAGES[:1], seed=2)
    await runtime.stop()
    return {
        "sample": sampled.images,
        "score": scored.log_likelihood_nats.astype(np.float32),
        "reconstruct": rebuilt.images,
        "encode": coded.latents,
    }


@pytest.fixture(scope="module")
def wanted(edition):
    """Bundle hash -> request -> the bytes of its answer."""
    found = {}
    for build in ("", "again"):
        runtime = Model.load(edition("1.9.0", build=build), provider="cpu", workers=1)
        answers = asyncio.run(_answers(runtime))
        found[runtime.bundle.hash] = {name: encode_npy(array) for name, array in answers.items()}
    one, other = found.values()
    assert all(one[name] != other[name] for name in REQUESTS), "the bundles can be told apart"
    return found


class Caller(threading.Thread):
    """Sends one kind of request over one connection, again and again."""

    def __init__(self, port, name):
        super().__init__(daemon=True)
        self.path, self.body = REQUESTS[name]
        self.port, self.kind = port, name
        self.answers, self.errors, self.ended = [], [], threading.Event()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"content-type": NPY, "accept": NPY, **KEYED}
        try:
            while not self.ended.is_set():
                connection.request("POST", self.path, self.body, headers)
                answer = connection.getresponse()
                body = answer.read()
                self.answers.append((answer.status, answer.headers["x-iafvae-bundle"], body))
        except (OSError, http.client.HTTPException) as error:
            self.errors.append(error)
        finally:
            connection.close()


def check(callers, wanted):
    """Every request was answered, by one of the bundles, and as that one answers alone."""
    seen = set()
    for caller in callers:
        assert caller.errors == []
        assert caller.answers
        for status, bundle, body in caller.answers:
            assert status == 200, body[:300]
            assert body == wanted[bundle][caller.kind], f"{caller.kind} of {bundle}"
            seen.add(bundle)
    assert seen == set(wanted), "both bundles have answered"


def wait_until(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def metric(url, line):
    page = httpx.get(f"{url}/metrics", headers=KEYED).text.splitlines()
    return next((float(text.rsplit(" ", 1)[1]) for text in page if text.startswith(line)), 0.0)


def start(directory, edition, put, launch, **settings):
    """A directory of models and a server on it, whose administrator's key is "boss"."""
    root, keys = directory / "models", directory / "keys"
    root.mkdir()
    put(edition("1.9.0"), root / "tiny")
    keys.write_text(key_line("boss", "test@admin") + "\n")
    given = {"IAFVAE_MODELS": str(root), "IAFVAE_KEYS_FILE": str(keys), **settings}
    # Small batches: the large requests are in the queue when the swap comes.
    return root, launch(IAFVAE_MAX_BATCH_ROWS="8", **given)


@pytest.fixture(scope="module")
def site(tmp_path_factory, edition, put, launch):
    """A server that swaps when it is told to."""
    root, running = start(tmp_path_factory.mktemp("site"), edition, put, launch)
    yield root, running
    running.process.kill()
    running.process.wait()


@pytest.fixture
def swap(site, edition, put):
    """Swap the other bundle in; what the server says of it."""
    root, running = site

    def other():
        loaded = httpx.get(f"{running.url}/v1/models/tiny", headers=KEYED).json()["bundle"]
        first = load_bundle(edition("1.9.0")).hash
        put(edition("1.9.0", build="again" if loaded == first else ""), root / "tiny")
        url = f"{running.url}/v1/admin/models/tiny/load"
        answer = httpx.post(url, headers=KEYED, timeout=30)
        assert answer.status_code == 200, answer.text
        assert answer.json()["change"] == "swapped"
        return answer.json()

    return other


def test_swaps_by_the_administrator_cost_no_request_and_no_memory(site, wanted, swap):
    _, running = site
    callers = [Caller(running.port, name) for name in REQUESTS]
    for caller in callers:
        caller.start()
    resident = []
    for _ in range(SWAPS):
        swap()
        served = len(callers[0].answers)
        wait_until(lambda served=served: len(callers[0].answers) > served + 1)
        resident.append(metric(running.url, "process_resident_memory_bytes") / 2**20)
    for caller in callers:
        caller.ended.set()
        caller.join(30)
    check(callers, wanted)
    wait_until(lambda: metric(running.url, RETIRING) == 0)
    assert metric(running.url, SWAPPED) == SWAPS
    assert metric(running.url, "iafvae_ready") == 1
    # The first swaps show what a second model takes for a while; the last ones take no more.
    third = SWAPS // 3
    assert max(resident[-third:]) < 1.1 * max(resident[:third]), resident


def test_the_watcher_swaps_and_refuses_under_load(tmp_path, wanted, edition, put, start_server):
    root, running = start(tmp_path, edition, put, start_server, IAFVAE_WATCH_SECONDS="0.05")
    callers = [Caller(running.port, name) for name in REQUESTS]
    for caller in callers:
        caller.start()
    for number in range(4):
        put(edition("1.9.0", build="again" if number % 2 == 0 else ""), root / "tiny")
        wait_until(lambda number=number: metric(running.url, SWAPPED) == number + 1)
    # The next one is whole but computes something else than it says.
    bad = put(edition("1.9.0", build="again"), root / ".bad")
    swap_canaries(bad, edition("1.9.0"))
    put(bad, root / "tiny")
    failures = 'iafvae_model_load_failures_total{directory="tiny"}'
    wait_until(lambda: metric(running.url, failures) == 1)
    time.sleep(0.3)
    for caller in callers:
        caller.ended.set()
        caller.join(30)
    check(callers, wanted)
    assert metric(running.url, failures) == 1, "it is not tried again"
    assert metric(running.url, SWAPPED) == 4
    listed = httpx.get(f"{running.url}/v1/models", headers=KEYED).json()
    assert "differ" in listed["failed"][0]["reason"]
    assert listed["models"][0]["bundle"] in wanted
    assert httpx.get(f"{running.url}/readyz").status_code == 200


def swap_canaries(bundle, other):
    """Give `bundle` the known answers of another one, and tell its manifest."""
    data = (other / "canaries.npz").read_bytes()
    (bundle / "canaries.npz").write_bytes(data)
    manifest = json.loads((bundle / "manifest.json").read_text())
    theirs = json.loads((other / "manifest.json").read_text())
    manifest["files"]["canaries.npz"] = theirs["files"]["canaries.npz"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_body_that_arrives_across_a_swap_is_answered(site, swap):
    """`/v2` finds the model before it has read the body."""
    _, running = site
    body = json.dumps(
        {"inputs": [{"name": "seed", "datatype": "INT64", "shape": [2], "data": [1, 2]}]}
    ).encode()
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    connection.putrequest("POST", "/v2/models/tiny.sample/infer")
    for name, value in {**KEYED, "content-length": str(len(body))}.items():
        connection.putheader(name, value)
    connection.endheaders(body[:10])
    time.sleep(0.3)  # the head has been read
    swapped = swap()
    assert metric(running.url, RETIRING) == 1
    connection.send(body[10:])
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    assert answer.headers["x-iafvae-bundle"] == swapped["replaced"]
    answer.read()
    connection.close()
    wait_until(lambda: metric(running.url, RETIRING) == 0)
