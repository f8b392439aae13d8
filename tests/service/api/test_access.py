"""Other origins' scripts, and the headers by which browsers keep pages safe."""

from __future__ import annotations

import pytest
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware

from service.api.security.auth import KeyGuard
from service.api.security.keys import key_line
from service.api.security.middleware import RequestContext
from service.settings import SettingsError, load_settings

ORIGIN = "https://example.org"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-iafvae-timeout-seconds",
}


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/metrics", "/v1/models", "/nothing", "/v2", "/web/api.js", "/v2/none"]
)
def test_every_answer_is_guarded(server, path):
    headers = server.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert len(headers.get_list("referrer-policy")) == 1
    assert headers["x-request-id"]


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/v1/models", "/v2/models/stats", "/none"])
def test_no_cache_on_the_way_keeps_what_changes(server, path):
    """nginx and Varnish, told to cache, keep what says nothing: `/metrics` in either format."""
    for answer in (server.get(path), server.head(path)):
        assert answer.headers.get_list("cache-control") == ["no-store"]


def test_pages_may_load_nothing_from_elsewhere(server):
    for path in ("/", "/docs"):
        policy = server.get(path).headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy


def test_other_origins_may_not_call_by_default(server):
    answer = server.post("/v1/sample", headers={"origin": ORIGIN})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert server.options("/v1/sample", headers=PREFLIGHT).status_code == 405


def test_those_that_are_named_may(serve):
    client = serve(cors_origins=(ORIGIN, "http://localhost:3000"))
    preflight = client.options("/v1/sample", headers=PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "x-iafvae-timeout-seconds" in preflight.headers["access-control-allow-headers"]
    answer = client.post("/v1/sample", headers={"origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    exposed = answer.headers["access-control-expose-headers"]
    ours = {name for name in answer.headers if name.startswith("x-iafvae")}
    assert ours | {"retry-after", "inference-header-content-length"} <= set(exposed.split(", "))
    other = client.post("/v1/sample", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    refused = client.options("/v1/sample", headers={**PREFLIGHT, "origin": "https://evil.example"})
    assert refused.status_code == 400


def test_scripts_may_send_every_header_that_is_read(serve):
    """Of other origins' scripts a browser sends no header that the preflight does not name."""
    client = serve(cors_origins=(ORIGIN,))
    for name in ("content-encoding", "inference-header-content-length", "traceparent"):
        asked = {**PREFLIGHT, "access-control-request-headers": name}
        assert client.options("/v1/score", headers=asked).status_code == 200, name


def test_a_preflight_needs_no_key(serve, tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text(key_line("secret", "ada") + "\n")
    client = serve(cors_origins=(ORIGIN,), keys_file=file)
    assert client.options("/v1/sample", headers=PREFLIGHT).status_code == 200
    refused = client.post("/v1/sample", headers={"origin": ORIGIN})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN, "the script can read why"
    assert refused.headers["x-request-id"] == refused.json()["request_id"]


def test_nothing_hides_a_disconnect(serve, tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text(key_line("secret", "ada") + "\n")
    app = serve(cors_origins=(ORIGIN,), keys_file=file).app
    kinds = [middleware.cls for middleware in app.user_middleware]
    assert kinds == [RequestContext, CORSMiddleware, KeyGuard]
    assert not any(issubclass(kind, BaseHTTPMiddleware) for kind in kinds)


def test_origins_are_a_list(monkeypatch):
    monkeypatch.setenv("IAFVAE_CORS_ORIGINS", f"{ORIGIN}, http://localhost:3000")
    assert load_settings().cors_origins == (ORIGIN, "http://localhost:3000")
    for bad in ("example.org", f"{ORIGIN}/path", "null"):
        monkeypatch.setenv("IAFVAE_CORS_ORIGINS", bad)
        with pytest.raises(SettingsError, match="IAFVAE_CORS_ORIGINS"):
            load_settings()
