"""How many requests are worked on at once, how many bytes they hold, and who has which share."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.security.admission import Admission, Quota, Shares, caller_of
from service.app import create_app
from service.errors import Overloaded, QuotaExceeded
from service.metrics import Metrics
from service.settings import Settings


def scope(path="/v1/score", method="POST", **state):
    return {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [],
        "query_string": b"",
        "state": state,
        "client": ("10.0.0.1", 5000),
    }


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def admit(metrics):
    operations = frozenset({"score", "anomaly_map", "infer"})

    def make(limit, **more):
        return Admission(
            max_in_flight=limit,
            metrics=metrics,
            operations=operations,
            **{"max_bytes": 1000, **more},
        )

    return make


def refused(metrics, operation):
    labels = {"operation": operation, "model": "", "outcome": "overloaded"}
    return metrics.registry.get_sample_value("iafvae_requests_total", labels)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.booleans()), min_size=1))
def test_a_share_is_never_more_than_is_free_for_others(requests):
    """Whoever has nothing may have all that is free; whoever has some, as much as is free."""
    shares, held = Shares(100), dict.fromkeys("abc", 0)
    for holder, amount, give in requests:
        if give and held[holder]:
            shares.give(holder, held[holder])
            held[holder] = 0
        free = 100 - sum(held.values())
        fits = amount <= free and (not held[holder] or held[holder] + amount <= free)
        assert shares.take(holder, amount) == fits
        held[holder] += amount if fits else 0
        assert shares.held == sum(held.values()) <= 100


def test_one_holder_fills_half_and_others_find_room(admit):
    admission = admit(64)
    for _ in range(32):
        admission.enter("flood")
    with pytest.raises(Overloaded):
        admission.enter("flood")
    for i in range(32):
        admission.enter(f"other {i}")
    assert admission.in_flight == 64
    with pytest.raises(Overloaded, match="64 requests"):
        admission.enter("late")
    admission.leave("flood")
    admission.enter("late")


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1/score", "score"),
        ("/v1/anomaly-map", "anomaly_map"),
        ("/v2/models/m.score/infer", "infer"),
        ("/v1/%20chosen-by-a-caller", ""),
    ],
)
def test_a_full_service_refuses_before_a_request_is_a_task(admit, metrics, path, operation):
    admission = admit(1)
    assert not admission.refuses(scope(path))
    admission.enter("a")
    assert admission.refuses(scope(path))
    status, headers, body = admission.whole_refusal(scope(path))
    assert status == 429
    assert dict(headers)[b"retry-after"] == b"1"
    assert b"1 requests are taken at once" in body
    assert {b"x-request-id", b"x-frame-options", b"content-length"} <= dict(headers).keys()
    assert refused(metrics, operation) == 1
    admission.leave("a")
    assert not admission.refuses(scope(path))


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/livez", "GET"),
        ("/metrics", "GET"),
        ("/v1/score", "GET"),
        ("/v1/admin/models/m/load", "POST"),
        ("/v2/repository/index", "POST"),
    ],
)
def test_probes_pages_and_operators_are_never_refused(admit, path, method):
    admission = admit(1)
    admission.enter("a")
    assert not admission.refuses(scope(path, method))


@pytest.mark.parametrize(
    ("setting", "shared"), [("none", True), ("forwarded_allow_ips", False), ("keys_file", False)]
)
def test_an_address_is_one_caller_but_behind_a_proxy_or_with_keys(tmp_path, setting, shared):
    keys = tmp_path / "keys"
    keys.write_text(f"{'0' * 64} somebody\n")
    given = {"forwarded_allow_ips": ("192.0.2.9",), "keys_file": keys}
    more = {setting: given[setting]} if setting in given else {}

    async def arrivals():
        app = create_app(Settings(models=tmp_path, max_in_flight=8, **more))
        return [app.state.shared.admission.refuses(scope()) for _ in range(5)]

    # Of eight slots one caller has four; who theirs are, requests' tasks tell elsewhere.
    assert asyncio.run(arrivals()) == [False] * 4 + [shared]


def test_an_address_that_has_its_share_is_refused_as_early(admit):
    """Those that come in one turn of the event loop hold no slot yet, and count."""
    flood, other = scope(), scope() | {"client": ("192.0.2.1", 1)}

    async def arrivals():
        admission = admit(8, by_address=True)
        assert [admission.refuses(flood) for _ in range(6)] == [False] * 4 + [True] * 2
        assert not admission.refuses(other)
        await asyncio.sleep(0)  # their tasks begin, which nothing holds any more
        assert admission.in_flight == 0
        for _ in range(4):
            admission.enter(flood["client"][0])
        assert admission.refuses(flood)
        assert not admission.refuses(other)
        for _ in range(4):
            admission.leave(flood["client"][0])
        for _ in range(3):  # no turn keeps anything of those before
            await asyncio.sleep(0)
            assert admission.in_flight == 0
            assert [admission.refuses(flood) for _ in range(5)] == [False] * 4 + [True]

    asyncio.run(arrivals())


def test_an_answer_that_waits_for_its_client_counts_however_large_it_is(admit):
    admission = admit(1, max_bytes=100)
    taken = admission.unread(scope(), 150)
    assert admission.bytes.held == 150
    assert not admission.bytes.take("somebody else", 1)
    taken()
    assert admission.bytes.held == 0
    assert admission.bytes.take("somebody else", 100)


def test_an_answer_that_is_counted_already_may_outlast_its_request(admit):
    """A stream that is broken off holds no bytes any more when its client takes what was sent."""
    admission = admit(8)
    taken = admission.unread(scope(counted=150), 100)
    assert admission.bytes.held == 0
    taken()
    assert admission.bytes.held == 0


def test_where_keys_say_who_somebody_is_an_address_is_not_asked(admit):
    admission = admit(8)
    for _ in range(4):
        admission.enter("192.0.2.1")
    assert not admission.refuses(scope() | {"client": ("192.0.2.1", 1)})


def test_callers_are_told_when_to_come_again(admit, monkeypatch):
    """A quarter of a second from answer to answer, with twelve at work: in three seconds."""
    clock = [0.0]
    monkeypatch.setattr("service.api.security.admission.time.monotonic", lambda: clock[0])
    admission = admit(12)
    for _ in range(2000):
        admission.enter("a")
        clock[0] += 0.25
        admission.leave("a")
    for i in range(12):
        admission.enter(str(i))
    _, headers, _ = admission.whole_refusal(scope())
    assert dict(headers)[b"retry-after"] == b"3"


def test_turns_are_by_connection_and_shares_by_address():
    assert caller_of(scope()) == ("10.0.0.1/10.0.0.1:5000", "10.0.0.1")
    assert caller_of(scope(caller="lab")) == ("lab/10.0.0.1:5000", "lab")
    assert caller_of({**scope(), "client": None}) == ("/:0", "")


@pytest.mark.parametrize(
    ("host", "holder"),
    [
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("2001:db8:1:3::9", "2001:db8:1:3::"),
        ("::1", "::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("unix:", "unix:"),
    ],
)
def test_an_ipv6_network_is_one_caller(host, holder):
    """Whoever has one has 2^64 addresses."""
    asking = {**scope(), "client": (host, 5000)}
    assert caller_of(asking) == (f"{holder}/{host}:5000", holder)


@pytest.mark.parametrize("more", [{}, {"access_log": True}, {"cors_origins": ("*",)}])
def test_where_no_place_is_free_the_body_is_not_read(serve, more):
    client = serve(max_in_flight=1, **more)
    client.app.state.shared.admission.enter("somebody")
    sent = []

    async def body():
        raise AssertionError("the body was read")

    async def keep(message):
        sent.append(message)

    client.run(client.app(scope("/v1/score"), body, keep))
    assert sent[0]["status"] == 429


def test_a_place_is_left_however_a_request_ends(serve, monkeypatch):
    """Answered, refused, broken, or cancelled: nothing stays counted."""
    client = serve(max_in_flight=2)
    admission = client.app.state.shared.admission
    assert client.post("/v1/sample?n=1").status_code == 200
    assert client.post("/v1/sample?n=0").status_code == 422
    assert client.post("/v2/models/tiny.score/infer", content=b"{").status_code == 400
    model = client.app.state.shared.registry.find().runtime

    async def broken(*arguments, **options):
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(model.scheduler, "submit", broken)
        assert client.post("/v1/sample?n=1").status_code == 500

    async def for_ever(*arguments, **options):
        await asyncio.sleep(60)

    monkeypatch.setattr(model.scheduler, "submit", for_ever)

    async def cancelled():
        request = asyncio.ensure_future(client.app(scope("/v1/sample"), nothing, ignore))
        await asyncio.sleep(0.01)
        assert admission.in_flight == 1
        request.cancel()
        await asyncio.wait([request])

    client.run(cancelled())
    assert (admission.in_flight, admission.bytes.held) == (0, 0)


def test_who_leaves_answers_unread_gets_none_in_addition(serve, problem):
    """However small an answer is: a thousand that nobody reads are many bytes."""
    client = serve(max_buffered_bytes=2**20, max_body_bytes=2**18)
    admission = client.app.state.shared.admission
    host = {"client": ("127.0.0.1", 9)}  # as httpx says
    taken = [admission.unread(scope() | host, 2**16) for _ in range(9)]
    detail = problem(client.post("/v1/sample?n=1"), 429, "overloaded")
    assert "read your answers" in detail
    taken.pop()()
    assert client.post("/v1/sample?n=1").status_code == 200
    other = scope() | {"client": ("192.0.2.7", 9)}
    taken.append(admission.unread(other, 2**16))
    assert client.post("/v1/sample?n=1").status_code == 429, "less is free, so its share is less"
    for done in taken:
        done()
    assert admission.bytes.held == 0


async def nothing():
    return {"type": "http.request", "body": b"", "more_body": False}


async def ignore(message):
    pass


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(1, 400)), min_size=1, max_size=60))
def test_a_quota_holds_over_any_time(requests):
    """Who asks whenever it may has at most a minute's rows, what time brought, and one request."""
    clock, had = Clock(), 0
    quota = Quota(600, clock)
    for pause, rows in requests:
        clock.now += pause
        try:
            quota.check("ada")
        except QuotaExceeded as error:
            clock.now += error.retry_after_seconds + 1e-6
            quota.check("ada")
        quota.charge("ada/10.0.0.1:1", rows)
        had += rows
        assert had <= 600 + 10 * clock.now + rows + 1e-3
    quota.check("bob")


def test_a_minute_without_requests_gives_a_minutes_rows():
    clock = Clock()
    quota = Quota(60, clock)
    for _ in range(3):
        quota.check("ada")
        quota.charge("ada", 61)
        with pytest.raises(QuotaExceeded, match="60 rows") as caught:
            quota.check("ada")
        assert caught.value.retry_after_seconds == pytest.approx(1.0)
        clock.now += 61.0


def test_who_owes_nothing_is_forgotten(monkeypatch):
    monkeypatch.setattr("service.api.security.admission.MAX_HOLDERS", 10)
    clock = Clock()
    quota = Quota(60, clock)
    quota.charge("in debt/1", 5000)
    for number in range(100):
        clock.now += 10.0
        quota.charge(f"10.0.0.{number}/1", 30)
    assert len(quota._paid) <= 10
    with pytest.raises(QuotaExceeded):
        quota.check("in debt")


def test_no_quota_keeps_nothing():
    quota = Quota(None)
    quota.charge("ada", 10**9)
    quota.check("ada")
    assert not quota._paid


def test_a_quota_over_http(serve, problem):
    client = serve(quota_rows_per_minute=10)
    post = lambda: client.post("/v1/sample?n=4")  # noqa: E731
    assert [post().status_code for _ in range(3)] == [200, 200, 200]
    answer = post()
    assert "10 rows" in problem(answer, 429, "quota-exceeded")
    assert 1 <= int(answer.headers["retry-after"]) <= 12
    assert client.post("/v2/models/tiny.sample/infer", content=b"{}").status_code == 429
    assert client.get("/v1/models").status_code == 200, "asks for no rows"
