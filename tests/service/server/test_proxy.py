"""Behind reverse proxies that mount the service below a prefix, and whose word is believed."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urljoin

import httpx
import pytest

from service.server.proxy import BehindProxy


class Proxy(ThreadingHTTPServer):
    """Passes what lies below /iafvae on; as nginx (takes the prefix off), Traefik (and says so),
    or plainly (leaves it)."""

    def __init__(self, upstream: str, habit: str) -> None:
        self.upstream, self.habit = upstream, habit
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        path, headers = self.path, {"host": "inner.example", "x-forwarded-proto": "https"}
        if not path.startswith("/iafvae"):
            self.send_error(404)
            return
        if self.server.habit != "plain":
            path = path.removeprefix("/iafvae")
        if self.server.habit == "traefik":
            headers["x-forwarded-prefix"] = "/iafvae"
        if "content-type" in self.headers:
            headers["content-type"] = self.headers["content-type"]
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        url = self.server.upstream + path
        answer = httpx.request(self.command, url, headers=headers, content=body)
        self.send_response(answer.status_code)
        for name in ("content-type", "location"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def upstreams(launch):
    """Servers with a prefix of their own, and with one that a stated proxy forwards."""
    given = {
        "nginx": {"IAFVAE_ROOT_PATH": "/iafvae/"},
        "traefik": {"IAFVAE_FORWARDED_ALLOW_IPS": "127.0.0.0/8"},
    }
    started = {habit: launch(**settings) for habit, settings in given.items()}
    yield {**started, "plain": started["nginx"]}
    for one in started.values():
        one.process.kill()
        one.process.wait()


@pytest.fixture(params=["nginx", "traefik", "plain"])
def front(upstreams, request):
    """What callers see of such a server."""
    with Proxy(upstreams[request.param].url, request.param) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        with httpx.Client(base_url=proxy.url) as client:
            yield client
        proxy.shutdown()


def test_pages_and_all_that_they_name(front):
    for page in ("/iafvae/", "/iafvae/docs"):
        text = front.get(page)
        assert text.status_code == 200
        found = set(re.findall(r'(?:src|href)="([^"#]+)"', text.text))
        scripts = [urljoin(page, link) for link in found if link.endswith(".js")]
        assert scripts
        for script in scripts:
            for name in re.findall(r'from "(\./[^"]+)"', front.get(script).text):
                assert front.get(urljoin(script, name)).status_code == 200, name
        for link in found:
            assert front.get(urljoin(page, link)).status_code == 200, link


def test_redirects_stay_below_the_prefix(front):
    answer = front.get("/iafvae/docs/")
    assert answer.is_redirect
    assert answer.headers["location"] == "/iafvae/docs"
    assert front.get("/iafvae/v1/models/").headers["location"] == "/iafvae/v1/models"


def test_the_document_names_its_server_and_operations_answer(front):
    document = front.get("/iafvae/openapi.json").json()
    assert document["servers"] == [{"url": "/iafvae"}]
    answer = front.post("/iafvae/v1/sample", json={"n": 1})
    assert answer.status_code == 200
    assert front.get("/iafvae/v1/nothing").json()["instance"] == "/v1/nothing"


def test_a_proxy_is_known_by_its_address_on_a_socket_for_both_families(start_server):
    server = start_server(IAFVAE_HOST="::", IAFVAE_FORWARDED_ALLOW_IPS="127.0.0.1")
    answer = httpx.get(f"{server.url}/docs/", headers={"x-forwarded-prefix": "/p"})
    assert answer.headers["location"] == "/p/docs"


# ------------------------------------------------------------------ who is believed


async def ask(trusted, client="10.0.0.1", path="/docs", root_path="", **headers):
    """What the application is told, and what it answers."""
    seen, sent = {}, []

    async def app(scope, receive, send):
        seen.update(scope)
        moved = [(b"location", b"http://inner/v1/x?y=1")]
        await send({"type": "http.response.start", "status": 307, "headers": moved})

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "scheme": "http",
        "client": (client, 1),
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
    }
    await BehindProxy(app, root_path=root_path, trusted=trusted)(scope, None, send)
    return seen, dict(sent[0]["headers"])[b"location"].decode()


FORWARDED = {
    "x_forwarded_prefix": "/p/",
    "x_forwarded_for": "9.9.9.9",
    "x_forwarded_proto": "https",
}


@pytest.mark.parametrize("trusted", [("10.0.0.0/8",), ("10.0.0.1", "192.0.2.1"), ("*",)])
@pytest.mark.parametrize("client", ["10.0.0.1", "::ffff:10.0.0.1"])
@pytest.mark.anyio
async def test_a_stated_proxy_is_believed(trusted, client):
    seen, location = await ask(trusted, client, **FORWARDED)
    assert (seen["client"][0], seen["scheme"], seen["path"]) == ("9.9.9.9", "https", "/docs")
    assert location == "/p/v1/x?y=1"


@pytest.mark.parametrize(
    ("forwarded", "known"),
    [
        ("victim/x, 203.0.113.9", "203.0.113.9"),
        ("unknown, 203.0.113.9:4711", "203.0.113.9"),
        ("[2001:db8::7]:80", "2001:db8::7"),
        ("2001:db8::7", "2001:db8::7"),
        ("a/b", "10.0.0.1"),
        ("", "10.0.0.1"),
        (" , ", "10.0.0.1"),
    ],
)
@pytest.mark.parametrize("trusted", [("10.0.0.0/8",), ("*",)])
@pytest.mark.anyio
async def test_whose_turn_it_is_is_an_address(trusted, forwarded, known):
    """Any text would be a caller, and one with a slash had no quota."""
    seen, _ = await ask(trusted, x_forwarded_for=forwarded)
    assert seen["client"][0] == known


@pytest.mark.parametrize("trusted", [(), ("192.0.2.1",)])
@pytest.mark.anyio
async def test_others_are_not(trusted):
    seen, location = await ask(trusted, **FORWARDED)
    assert (seen["client"][0], seen["scheme"]) == ("10.0.0.1", "http")
    assert location == "/v1/x?y=1"


@pytest.mark.parametrize(
    "prefix", ["//evil.example", "p", "/p/../..", "/p?x", "https://evil", "/p\\x"]
)
@pytest.mark.anyio
async def test_a_forwarded_prefix_is_a_path(prefix):
    _, location = await ask(("*",), x_forwarded_prefix=prefix)
    assert location == "/v1/x?y=1"


@pytest.mark.anyio
async def test_the_prefix_alone_lacks_its_slash():
    async def app(scope, receive, send):
        raise AssertionError

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/p", "client": None, "headers": [], "method": "GET"}
    await BehindProxy(app, root_path="/p", trusted=())(scope, None, send)
    assert dict(sent[0]["headers"])[b"location"] == b"/p/"
