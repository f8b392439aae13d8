"""The administrator's paths: who may, what they do, and what they refuse."""

from __future__ import annotations

import shutil

import pytest

from service.api.security.keys import is_admin, key_line


@pytest.fixture
def keys(tmp_path):
    """A file of keys: an administrator's is "boss", another caller's "user"."""
    file = tmp_path / "keys"
    file.write_text(f"{key_line('boss', 'alice@admin')}\n{key_line('user', 'bob')}\n")
    return file


@pytest.fixture
def admin(serve, root, keys):
    """POST as the administrator: `admin("a/load")`; `admin.client` is the application."""
    client = serve(models=root, keys_file=keys)

    def post(path, key="boss", **params):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return client.post(f"/v1/admin/models/{path}", headers=headers, params=params)

    post.client = client
    post.answering = lambda **options: client.post(
        "/v1/sample", json=options, headers={"authorization": "Bearer user"}
    ).headers["x-iafvae-version"]
    return post


CALLS = ("a/load", "tiny/reload", "tiny/unload", "tiny/default", "tiny/pin")


@pytest.mark.parametrize("call", CALLS)
def test_administrators_alone_change_models(admin, problem, call):
    assert "Bearer KEY" in problem(admin(call, key=None), 401, "unauthorized")
    problem(admin(call, key="guess"), 401, "unauthorized")
    assert "@admin" in problem(admin(call, key="user"), 403, "forbidden")


@pytest.mark.parametrize("call", CALLS)
def test_without_keys_nobody_changes_models(server, problem, call):
    assert "IAFVAE_KEYS_FILE" in problem(server.post(f"/v1/admin/models/{call}"), 403, "forbidden")


def test_who_is_an_administrator():
    assert is_admin("admin")
    assert is_admin("alice@admin")
    assert not any(is_admin(name) for name in ("bob", "admin@bob", "badmin", "a.admin", "admin@"))


def test_load_swap_pin_and_unload(admin, root, edition, put):
    put(edition("1.10.0"), root / "b")
    loaded = admin("b/load")
    assert loaded.status_code == 200
    assert loaded.json()["change"] == "loaded"
    assert loaded.json()["seconds"] > 0
    assert admin.answering() == "1.10.0"
    assert admin("b/load").json()["change"] == "unchanged"
    assert admin("tiny/pin", version="1.9.0").json()["version"] == "1.9.0"
    assert admin.answering() == "1.9.0"
    assert admin("tiny/pin").json()["version"] == "1.10.0"
    put(edition("2.0.0"), root / "b")
    swapped = admin("tiny@1.10.0/reload").json()
    assert (swapped["change"], swapped["version"]) == ("swapped", "2.0.0")
    assert swapped["replaced"] == loaded.json()["bundle"]
    assert admin("tiny@1.9.0/unload").json()["change"] == "unloaded"
    assert admin.answering() == "2.0.0"
    put(edition("3", name="other"), root / "o")
    admin("o/load")
    assert admin.answering() == "2.0.0"
    assert admin("other/default").json()["change"] == "chosen"
    assert admin.answering() == "3"


def test_what_cannot_be_done_is_a_problem(admin, problem, root, edition):
    assert "there are a" in problem(admin("none/load"), 404, "unknown-bundle")
    problem(admin("none/reload"), 404, "unknown-model")
    problem(admin("tiny@7/unload"), 404, "unknown-model")
    problem(admin("tiny/pin", version="7"), 404, "unknown-model")
    assert "default model" in problem(admin("tiny/unload"), 409, "conflict")
    shutil.copytree(root / "a", root / "b")
    assert "rename one" in problem(admin("b/load"), 409, "conflict")
    (root / "b" / "weights.bin").write_bytes(b"")
    detail = problem(admin("b/load"), 422, "bundle-refused")
    assert "weights.bin" in detail
    assert str(root) not in detail


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "..%2f..%2fetc", "%2fetc", ".hidden", "a%00", "a%2f", "%ff"]
)
def test_no_path_leads_out_of_the_directory(admin, root, name):
    shutil.copytree(root / "a", root / ".hidden")
    answer = admin(f"{name}/load")
    assert answer.status_code in {404, 405}
    assert answer.headers["content-type"] == "application/problem+json"
    assert [m.directory for m in admin.client.app.state.shared.registry.models] == ["a"]


def test_they_are_described(admin):
    api = admin.client.get("/openapi.json", headers={"authorization": "Bearer user"}).json()
    paths = {path: item for path, item in api["paths"].items() if "/admin/" in path}
    assert len(paths) == len(CALLS)
    for item in paths.values():
        responses = item["post"]["responses"]
        assert set(responses) >= {"200", "401", "403", "404", "409", "422", "503"}
        assert "application/problem+json" in responses["409"]["content"]


def test_versions_are_listed(admin, root, edition, put, problem):
    put(edition("1.10.0"), root / "b")
    admin("b/load")
    headers = {"authorization": "Bearer user"}
    one = admin.client.get("/v1/models/tiny/versions/1.9.0", headers=headers).json()
    assert (one["version"], one["default_version"], one["directory"]) == ("1.9.0", False, "a")
    assert one["versions"] == ["1.10.0", "1.9.0"]
    newest = admin.client.get("/v1/models/tiny", headers=headers).json()
    assert (newest["version"], newest["default"], newest["default_version"]) == (
        "1.10.0",
        True,
        True,
    )
    answer = admin.client.get("/v1/models/tiny/versions/7", headers=headers)
    assert "there are 1.10.0, 1.9.0" in problem(answer, 404, "unknown-model")
