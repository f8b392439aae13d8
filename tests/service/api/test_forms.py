"""Forms as clients write them (httpx is the oracle), and as nobody should."""

from __future__ import annotations

import asyncio
import time
import tracemalloc

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.request import forms
from service.api.request.forms import parse_form
from service.errors import MalformedBody

NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=8)
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from([b"\r\n", b"--", b"\r\n--b", b"\r\n--", b"\r", b"x"])).map(b"".join),
)
HEAD = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'


def parsed(body, boundary=b"b", most=100):
    return asyncio.run(parse_form(body, boundary, most))


@settings(max_examples=200)
@given(st.lists(st.tuples(NAMES, NAMES, CONTENTS), min_size=1, max_size=5), st.integers(1, 30))
def test_what_a_client_writes_is_read(files, step):
    boundary = b"a boundary that is in no content"
    request = httpx.Request(
        "POST",
        "http://x",
        files=[(name, (filename, content)) for name, filename, content in files],
        headers={"content-type": f"multipart/form-data; boundary={boundary.decode()}"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "STEP_BYTES", step)
        assert [tuple(part) for part in parsed(request.read(), boundary)] == files


def test_a_large_file_is_not_copied_and_others_have_most_of_the_time():
    """Line ends are much like a boundary, which then takes thirty times as long to be found."""
    body = HEAD + b"\r\n" * 8_000_000 + b"\r\n--b--\r\n"

    async def main():
        cpu, wall = time.thread_time(), time.perf_counter()
        (part,) = await parse_form(body, b"b", 100)
        assert len(part.content) == 16_000_000
        return time.thread_time() - cpu, time.perf_counter() - wall

    tracemalloc.start()
    try:
        busy, whole = asyncio.run(main())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**20
    assert busy < 0.5 * whole


def test_what_stands_around_the_parts_is_nobodys():
    body = b"before\r\n" + HEAD + b"1\r\n--b--\r\nafter\r\n" + HEAD
    assert [part.content for part in parsed(body)] == [b"1"]
    assert parsed(b"--b--") == []


@pytest.mark.parametrize(
    ("header", "filename"),
    [
        (b"name=files; filename=a.png", "a.png"),
        (b"name=files; filename*=utf-8''caf%C3%A9.png", "caf%C3%A9.png"),
        (b"name=files; filename=a; filename*=utf-8''b", "a"),
        (b"name=files; filename*=b", "b"),
        (b"name=files", None),
        (b"\r\n name=files;\r\n\tfilename=a.png", "a.png"),
        (b'name=files; filename="' + 100 * b"a;" + b'.png"', 100 * "a;" + ".png"),
    ],
)
def test_files_have_a_name(header, filename):
    body = b"--b\r\ncontent-disposition: form-data; " + header + b"\r\n\r\n1\r\n--b--"
    (part,) = parsed(body)
    assert (part.name, part.filename, part.content) == ("files", filename, b"1")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        HEAD,
        HEAD + b"1\r\n--b",
        HEAD + b"1--b--",
        b"--bx\r\n\r\n--b--",
        b"--b\r\nno head\r\n--b--",
        b"--b\r\n\r\nno disposition\r\n--b--",
        b"--b\r\nContent-Disposition: form-data\r\n\r\n1\r\n--b--",
        b"--b\r\nx: " + b"y" * forms.MAX_HEAD_BYTES + b"\r\n" + HEAD[5:] + b"1\r\n--b--",
        (HEAD + b"1\r\n--b--").replace(b"\r\n", b"\n"),
    ],
)
def test_what_is_no_form_is_refused(body):
    with pytest.raises(MalformedBody):
        parsed(body)


@pytest.mark.parametrize("encoding", [b"base64", b"quoted-printable", b" BASE64 ", b"x"])
@pytest.mark.parametrize("first", [True, False])
def test_a_part_that_is_encoded_for_mail_is_refused_as_such(encoding, first):
    lines = [HEAD[5:-4], b"Content-Transfer-Encoding:" + encoding]
    head = b"\r\n".join(reversed(lines) if first else lines)
    with pytest.raises(MalformedBody, match="Content-Transfer-Encoding"):
        parsed(b"--b\r\n" + head + b"\r\n\r\nMQ==\r\n--b--")


@pytest.mark.parametrize("encoding", [b"binary", b"8bit", b"7BIT"])
def test_a_part_that_is_said_to_be_as_it_is_is_read(encoding):
    head = HEAD[:-2] + b"Content-Transfer-Encoding: " + encoding + b"\r\n\r\n"
    assert [part.content for part in parsed(head + b"1\r\n--b--")] == [b"1"]


def test_more_parts_than_are_taken_are_not_looked_at():
    assert len(parsed((HEAD + b"1\r\n") * 50 + b"--b--", most=3)) == 4
