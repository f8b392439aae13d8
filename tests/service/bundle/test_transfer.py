"""Bundles pulled from a real HTTP server and a real S3 protocol (moto), and pushed there."""

from __future__ import annotations

import http.server
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

pytest.importorskip("obstore")
from typer.testing import CliRunner

from service.bundle import BundleError, load_bundle, transfer
from service.bundle.transfer import pull, push
from service.cli.main import app


class Files(http.server.SimpleHTTPRequestHandler):
    """Files of a directory, with ranges or without."""

    asked: ClassVar[list[tuple[str, str | None]]] = []
    ranges = True
    pause = 0.0  # before each tenth of a manifest

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("range")))
        try:
            data = Path(self.translate_path(self.path.split("?")[0])).read_bytes()
        except OSError:
            self.send_error(404)
            return
        start, given = 0, self.headers.get("range") if self.ranges else None
        if given:
            start = int(given.removeprefix("bytes=").split("-")[0])
            self.send_response(206)
            self.send_header("content-range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("content-length", str(len(data) - start))
        self.send_header("last-modified", self.date_time_string(0))
        self.end_headers()
        if self.pause and "manifest" in self.path:
            for tenth in range(start, len(data), len(data) // 10):
                time.sleep(self.pause)
                with suppress(OSError):  # who asked has gone
                    self.wfile.write(data[tenth : tenth + len(data) // 10])
            return
        self.wfile.write(data[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def site(tiny_bundle):
    handler = type("Handler", (Files,), {"asked": [], "ranges": True})
    serve = partial(handler, directory=str(tiny_bundle))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        handler.url = f"http://127.0.0.1:{server.server_port}"
        yield handler
        server.shutdown()
        thread.join()


@pytest.fixture
def digest(tiny_bundle):
    return load_bundle(tiny_bundle).hash


def left(folder):
    return sorted(each.name for each in folder.iterdir())


def test_a_pulled_bundle_is_the_one_of_its_hash(site, digest, tmp_path):
    bundle = pull(site.url, digest, tmp_path / "m")
    assert bundle.hash == digest
    assert left(tmp_path) == ["m"]
    asked = len(site.asked)
    pull(site.url, digest, tmp_path / "m")  # it is there
    pull(site.url, digest, tmp_path / "m", offline=True)
    assert len(site.asked) == asked


def test_a_pull_over_another_bundle_leaves_neither_behind(site, digest, tmp_path, edition):
    other = load_bundle(edition("9.9.9")).hash
    push(edition("9.9.9"), f"file://{tmp_path}/shelf")
    for _ in range(2):
        pull(site.url, digest, tmp_path / "m")
        assert pull(f"file://{tmp_path}/shelf", other, tmp_path / "m").hash == other
        assert left(tmp_path) == ["m", "shelf"]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_pull_goes_on_where_it_stopped(site, digest, tmp_path, tiny_bundle, ranges):
    site.ranges, name = ranges, "weights.bin"
    part = tmp_path / f".m.{digest[:16]}.part"
    part.mkdir()
    whole = (tiny_bundle / name).read_bytes()
    (part / name).write_bytes(whole[:1000])
    (part / "manifest.json").write_bytes((tiny_bundle / "manifest.json").read_bytes())
    assert pull(site.url, digest, tmp_path / "m").hash == digest
    assert (f"/{name}", "bytes=1000-") in site.asked
    assert "/manifest.json" not in [path for path, _ in site.asked]


@pytest.mark.parametrize("end", ["/", "//", "/?sig=a/b", "?sig=a/b"])
def test_a_slash_at_the_end_of_a_url_is_no_part_of_a_name(site, digest, tmp_path, end):
    assert pull(site.url + end, digest, tmp_path / "m").hash == digest
    query = end[end.find("?") :] if "?" in end else ""
    assert site.asked[0][0] == "/manifest.json" + query


@pytest.mark.parametrize(
    "host", ["m.s3.us-east-1.amazonaws.com", "a.blob.core.windows.net", "huggingface.co"]
)
def test_https_is_https_whoever_answers(host):
    """A public bucket, or one whose URL has a signature, needs no credentials of its cloud."""
    url = f"https://{host}/models/tiny?sig=a"
    assert repr(transfer._store(url)) == f'HTTPStore("{url}")'


def test_a_pull_may_take_long_if_something_comes(site, digest, tmp_path, monkeypatch):
    assert transfer.CLIENT["timeout"] >= timedelta(hours=1)  # obstore's own: 30 s a file
    monkeypatch.setitem(transfer.CLIENT, "read_timeout", timedelta(seconds=0.5))
    monkeypatch.setitem(transfer.RETRIES, "max_retries", 0)
    site.pause = 0.1
    assert pull(site.url, digest, tmp_path / "slow").hash == digest
    site.pause = 2
    with pytest.raises(BundleError, match="cannot be read"):
        pull(site.url, digest, tmp_path / "stalled")


def test_no_more_is_fetched_than_the_manifest_says(
    site, digest, tmp_path, tiny_bundle, monkeypatch
):
    """From a server that never ends to send a disk would fill before any hash is looked at."""
    size, pieces = (tiny_bundle / "weights.bin").stat().st_size, []
    get = type(transfer._store(site.url)).get

    class Endless:
        def stream(self):
            while len(pieces) < 1000:
                pieces.append(bytes(size))
                yield pieces[-1]

    monkeypatch.setattr(
        type(transfer._store(site.url)),
        "get",
        lambda self, name, **more: Endless() if name == "weights.bin" else get(self, name, **more),
        raising=False,
    )
    with pytest.raises(BundleError, match=r"weights\.bin does not have the SHA-256"):
        pull(site.url, digest, tmp_path / "m")
    assert len(pieces) == 2


def test_a_place_that_cannot_be_written_is_named(tiny_bundle, tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "x", Path("/proc/x")):
        with pytest.raises(BundleError, match=f"file://{place}: "):
            push(tiny_bundle, f"file://{place}")


@pytest.mark.parametrize("sha256", ["", "abc", "g" * 64, "0" * 65])
def test_what_is_no_hash_asks_nobody(site, tmp_path, sha256):
    with pytest.raises(BundleError, match="64 hexadecimal"):
        pull(site.url, sha256, tmp_path / "m")
    assert not site.asked
    assert not left(tmp_path)


def test_what_was_changed_on_the_way_does_not_appear(site, digest, tmp_path, tiny_bundle):
    with pytest.raises(BundleError, match="SHA-256"):
        pull(site.url, "0" * 64, tmp_path / "m")
    assert not left(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle, other)
    (other / "weights.bin").write_bytes(b"x" * (other / "weights.bin").stat().st_size)
    with pytest.raises(BundleError, match=r"weights\.bin"):
        pull(other.as_uri(), digest, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_offline_fetches_nothing(digest, tmp_path):
    with pytest.raises(BundleError, match="no bundle of the hash"):
        pull("http://127.0.0.1:9/", digest, tmp_path / "m", offline=True)


def test_something_else_is_not_replaced(site, digest, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="is no bundle"):
        pull(site.url, digest, tmp_path / "m")
    assert left(tmp_path / "m") == ["thesis.txt"]


def test_where_one_stands_does_not_become_a_bundle(site, digest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="give a directory in it"):
        pull(site.url, digest, Path())
    assert not left(tmp_path)


@pytest.mark.parametrize("url", ["{}/nothing", "{}/nothing/", "ftp://h/m", "s3:/x", "nonsense"])
def test_errors_are_one_line_without_secrets(site, digest, tmp_path, url):
    given = url.format(site.url).replace("http://", "http://me:hunter2@hunter2@") + "?sig=hunter2"
    done = CliRunner().invoke(
        app, ["bundle", "pull", given, "--sha256", digest, "-o", str(tmp_path / "m")]
    )
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1
    assert "hunter2" not in done.output


def test_of_pulls_at_once_one_fetches(site, digest, tmp_path):
    """Several pods that share a volume: they would append to the same files."""
    site.pause = 0.02
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(pull, site.url, digest, tmp_path / "m") for _ in range(4)]
        assert {call.result().hash for call in calls} == {digest}
    paths = [path for path, _ in site.asked]
    assert len(paths) == len(set(paths))
    assert left(tmp_path) == ["m"]


def test_a_damaged_bundle_is_fetched_again(site, digest, tmp_path):
    pull(site.url, digest, tmp_path / "m")
    (tmp_path / "m" / "weights.bin").write_bytes(b"")
    with pytest.raises(BundleError, match="a damaged one"):
        pull(site.url, digest, tmp_path / "m", offline=True)
    assert pull(site.url, digest, tmp_path / "m").hash == digest
    assert left(tmp_path) == ["m"]


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files there")
def test_a_disk_that_is_full_is_no_fault_of_the_server(site, digest, tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(BundleError, match=r"manifest\.json cannot be written \(File too large"):
            pull(site.url, digest, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert pull(site.url, digest, tmp_path / "m").hash == digest


def test_push_and_pull_by_s3(tiny_bundle, edition, tmp_path, monkeypatch, digest):
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }.items():
            monkeypatch.setenv(name, value)
        httpx.put(f"http://{host}:{port}/models", timeout=60).raise_for_status()
        assert push(tiny_bundle, "s3://models/tiny-1").hash == digest
        push(tiny_bundle, "s3://models/tiny-1")  # the same again
        with pytest.raises(BundleError, match="another bundle"):
            push(edition("9.9.9"), "s3://models/tiny-1")
        assert pull("s3://models/tiny-1", digest, tmp_path / "m").hash == digest
    finally:
        server.stop()
