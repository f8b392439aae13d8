"""Keys: what a file may hold, what is let in, what is logged, and what stays open."""

from __future__ import annotations

import codecs
import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.api.security.keys import (
    KeyFile,
    KeyFileError,
    append_line,
    key_line,
    new_key,
    read_keys,
)
from service.cli.main import app
from service.errors import Unauthorized


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def bearer(key):
    return f"Bearer {key}".encode()


def replace(path, text):
    """As an operator or Kubernetes does it: another file takes its place."""
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


@pytest.fixture
def keys(tmp_path):
    """Two keys, and the file that lets them in."""
    made = {name: new_key() for name in ("ada", "grace")}
    lines = [key_line(key, name) for name, key in made.items()]
    path = tmp_path / "keys.txt"
    path.write_text("# who may call\n\n" + "\n".join(lines) + "   # since May\n")
    return path, made


def test_a_line_is_the_hash_and_the_name():
    assert key_line("secret", "ada") == hashlib.sha256(b"secret").hexdigest() + " ada"
    assert len(new_key()) > 45
    assert new_key() != new_key()


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_is_read_as_editors_write_it(tmp_path, mark, end):
    path = tmp_path / "keys.txt"
    path.write_bytes(f"{mark}{key_line('secret', 'ada')}{end}".encode())
    assert KeyFile(path).holder(b"Bearer secret") == "ada"


def test_holders_are_known_by_their_keys(keys):
    path, made = keys
    file = KeyFile(path)
    for name, key in made.items():
        assert file.holder(bearer(key)) == name
        assert file.holder(f"bearer   {key} ".encode()) == name


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic YTpi",
        b"Bearer wrong",
        b"Bearer \xff\xfe",
        b"Bearer " + b"x" * 10_000,
    ],
)
def test_others_are_refused(keys, header):
    with pytest.raises(Unauthorized) as caught:
        KeyFile(keys[0]).holder(header)
    assert caught.value.challenge.startswith("Bearer")
    assert "x" * 20 not in str(caught.value)


def test_two_keys_may_share_a_name_while_one_replaces_the_other(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text(f"{key_line('old', 'ada')}\n{key_line('new', 'ada')}\n")
    file = KeyFile(path)
    assert file.holder(bearer("old")) == file.holder(bearer("new")) == "ada"


GOOD = key_line("k", "ada")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{GOOD}\nsecret ada", "line 2: a line is the SHA-256"),
        (f"{GOOD}\n\n{GOOD[:-4]}", "line 3"),
        (f"# x\n{GOOD} extra", "line 2"),
        (f"{GOOD}/b", "line 1"),
        (f"{GOOD}\n{GOOD}", "line 2: this key is there already"),
        ("", "holds no keys"),
        ("# nobody\n", "holds no keys"),
        ("x" * (2**20 + 1), "more than"),
        ("# " + "é" * 2**19, "more than"),  # cut in the middle of a letter
    ],
)
def test_a_bad_file_is_refused_by_its_line(tmp_path, text, words):
    path = tmp_path / "keys.txt"
    path.write_text(text)
    with pytest.raises(KeyFileError, match=words) as caught:
        KeyFile(path)
    assert "secret" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(KeyFileError, match=r"none \(IAFVAE_KEYS_FILE\) cannot be read"):
        KeyFile(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KeyFileError, match="not text"):
        KeyFile(tmp_path / "bytes")
    with pytest.raises(KeyFileError, match="cannot be read"):
        KeyFile(tmp_path)


def test_a_change_is_seen_within_a_second(keys, clock):
    path, made = keys
    file = KeyFile(path, clock=clock)
    replace(path, key_line("fresh", "lin") + "\n")
    assert file.holder(bearer(made["ada"])) == "ada", "not looked at yet"
    clock.now = 1.1
    assert file.holder(bearer("fresh")) == "lin"
    with pytest.raises(Unauthorized):
        file.holder(bearer(made["ada"]))


@pytest.mark.parametrize("text", ["nonsense", "", None])
def test_a_change_for_the_worse_keeps_the_last_good_keys(keys, clock, caplog, text):
    path, made = keys
    file = KeyFile(path, clock=clock)
    if text is None:
        path.unlink()
    else:
        replace(path, text)
    assert not file.failed
    for clock.now in (2.0, 4.0, 6.0):
        assert file.holder(bearer(made["ada"])) == "ada"
    assert (file.failed, file.age_seconds) == (True, 6.0)
    said = [record for record in caplog.records if "stay in force" in record.message]
    assert len(said) == 1, "once, not with every request"
    replace(path, key_line("fresh", "lin") + "\n")
    clock.now = 8.0
    assert (file.failed, file.age_seconds) == (False, 0.0)
    assert file.holder(bearer("fresh")) == "lin"


@pytest.fixture
def nobody():
    """No longer root, whom no mode keeps out."""
    if os.geteuid() != 0:
        yield
        return
    codecs.lookup("utf-8-sig")  # a module that only root may be able to read
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.name == "nt", reason="no modes of files there")
def test_what_cannot_be_read_for_a_while_is_read_when_it_can(clock, caplog, nobody):
    """A mode that was wrong and is put right changes neither the file's time nor its size."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        path = Path(made) / "keys.txt"
        path.write_text(key_line("a", "ada") + "\n")
        file = KeyFile(path, clock=clock)
        replace(path, key_line("b", "bob") + "\n")
        for locked, mode in ((path, 0o600), (path.parent, 0o700)):
            locked.chmod(0)
            clock.now += 2.0
            assert file.holder(bearer("a" if locked == path else "b"))
            assert file.failed
            locked.chmod(mode)
            clock.now += 2.0
            assert file.holder(bearer("b")) == "bob"
            assert not file.failed
    said = [record for record in caplog.records if "stay in force" in record.message]
    assert len(said) == 2


def test_lines_are_appended(tmp_path):
    path = tmp_path / "keys.txt"
    append_line(path, key_line("a", "ada"))
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text(path.read_text().rstrip("\n"))  # as some editors leave it
    append_line(path, key_line("b", "bob"))
    assert list(read_keys(path).values()) == ["ada", "bob"]
    other = tmp_path / "other"
    other.write_text("something else\n")
    with pytest.raises(KeyFileError):
        append_line(other, key_line("a", "ada"))
    assert other.read_text() == "something else\n"


# ------------------------------------------------------------------ over HTTP


@pytest.fixture
def guarded(serve, keys):
    def start(**more):
        return serve(keys_file=keys[0], **more)

    return start


def test_a_key_is_needed_and_enough(guarded, keys, problem):
    client = guarded()
    answer = client.post("/v1/sample")
    assert "Authorization: Bearer" in problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    wrong = client.post("/v1/sample", headers={"authorization": "Bearer wrong"})
    problem(wrong, 401, "unauthorized")
    assert wrong.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    right = {"authorization": f"Bearer {keys[1]['ada']}"}
    assert client.post("/v1/sample", headers=right).status_code == 200
    twice = [("authorization", "Bearer wrong"), ("authorization", right["authorization"])]
    for several in (twice, twice[::-1]):
        told = problem(client.post("/v1/sample", headers=several), 401, "unauthorized")
        assert "several" in told
    refused = {"operation": "", "model": "", "outcome": "unauthorized"}
    assert client.metric("iafvae_requests_total", **refused) == 4
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing", "/web"):
        assert client.get(path).status_code == 401, path
        assert client.get(path, headers=right).status_code != 401, path


@pytest.mark.parametrize(
    "path",
    ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/", "/docs", "/web/api.js"],
)
def test_probes_and_pages_are_open(guarded, path):
    assert guarded().get(path).status_code == 200


def test_metrics_are_open_where_they_are_set_to_be(guarded):
    client = guarded(open_metrics=True)
    assert client.get("/metrics").status_code == 200
    assert client.get("/v1/models").status_code == 401


def test_v2_refuses_in_its_own_form(guarded, keys):
    client = guarded()
    answer = client.get("/v2/models/tiny.score")
    assert answer.status_code == 401
    assert list(answer.json()) == ["error"]
    assert answer.headers["www-authenticate"] == "Bearer"
    right = {"authorization": f"Bearer {keys[1]['ada']}"}
    assert client.get("/v2/models/tiny.score", headers=right).status_code == 200


def test_the_holder_is_the_caller_of_the_scheduler(guarded, keys, monkeypatch):
    client = guarded()
    scheduler = client.app.state.shared.registry.find().runtime.scheduler
    callers, submit = [], scheduler.submit

    async def noting(work, *, caller, **options):
        callers.append(caller)
        return await submit(work, caller=caller, **options)

    monkeypatch.setattr(scheduler, "submit", noting)
    for name in ("ada", "grace"):
        client.post("/v1/sample", headers={"authorization": f"Bearer {keys[1][name]}"})
    assert [caller.partition("/")[0] for caller in callers] == ["ada", "grace"]


def test_metrics_say_what_became_of_the_file(guarded, keys, monkeypatch):
    monkeypatch.setattr("service.api.security.keys.CHECK_SECONDS", 0.0)
    client = guarded(open_metrics=True)
    assert client.metric("iafvae_keys_file_failed") == 0
    keys[0].unlink()
    assert client.metric("iafvae_keys_file_failed") == 1
    assert client.metric("iafvae_keys_age_seconds") > 0


def test_logs_name_the_holder_and_never_the_key(guarded, keys, caplog):
    client = guarded(access_log=True)
    key = keys[1]["ada"]
    with caplog.at_level("DEBUG"):
        client.post("/v1/sample", headers={"authorization": f"Bearer {key}"})
        client.post("/v1/sample", headers={"authorization": f"Bearer {key[:-1]}"})
    first, second = (r for r in caplog.records if r.name == "iafvae.access")
    assert first.fields["caller"] == "ada"
    assert first.fields["client"] == second.fields["client"] == "127.0.0.1"
    assert (second.fields["status"], "caller" in second.fields) == (401, False)
    written = "".join(f"{r.getMessage()}{vars(r)}" for r in caplog.records)
    assert key[:-1] not in written


def test_a_body_is_not_read_of_who_has_no_key(guarded):
    client = guarded()

    async def ask():
        sent = []
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "path": "/v1/score", "raw_path": b"/v1/score", "query_string": b"", "root_path": "",
            "scheme": "http", "server": ("t", 80), "client": ("c", 1), "headers": [],
        }  # fmt: skip

        async def receive():
            raise AssertionError("the body was read")

        async def send(message):
            sent.append(message)

        await client.app(scope, receive, send)
        return sent[0]["status"]

    assert client.run(ask()) == 401


def test_the_server_does_not_start_with_a_bad_file(tmp_path, tiny_bundle, refused):
    path = tmp_path / "keys.txt"
    path.write_text(f"{GOOD}\nnonsense\n")
    message = refused(IAFVAE_MODELS=str(tiny_bundle), IAFVAE_KEYS_FILE=str(path))
    assert "line 2" in message


def test_the_command_makes_a_key_that_works(tmp_path):
    path = tmp_path / "keys.txt"

    def run(*arguments):
        return CliRunner().invoke(app, ["key", *arguments])

    done = run("ada", "--file", str(path))
    assert (done.exit_code, len(done.stdout.split())) == (0, 1)
    printed = run("bob").stdout.split("\n")
    with path.open("a") as file:
        file.write(printed[1] + "\n")
    keys = KeyFile(path)
    assert keys.holder(bearer(done.stdout.strip())) == "ada"
    assert keys.holder(bearer(printed[0])) == "bob"
    bad = run("no/name")
    assert (bad.exit_code, bad.stdout) == (1, "")
    assert "letters, digits" in bad.stderr


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    """To open a FIFO would wait for whoever writes to it."""
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(KeyFileError, match="it is no regular file"):
            read_keys(tmp_path / name)


@pytest.mark.parametrize("how", ["deleted", "emptied", "fifo"])
def test_a_file_that_goes_is_said_and_the_keys_stay(tmp_path, how, caplog):
    path, key, now = tmp_path / "keys.txt", new_key(), [0.0]
    append_line(path, key_line(key, "ada"))
    keys = KeyFile(path, clock=lambda: now[0])
    path.unlink()
    if how == "emptied":
        path.touch()
    elif how == "fifo":
        os.mkfifo(path)
    now[0] += 10.0
    assert keys.holder(f"Bearer {key}".encode()) == "ada"
    assert "the keys read before stay in force" in caplog.text
