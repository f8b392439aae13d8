"""The pages: complete, self-contained, small. `test_web_browser.py` drives them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

WEB = Path(__file__).parents[3] / "service" / "web"
FILES = sorted(WEB.iterdir())
TEXTS = [file for file in FILES if file.suffix != ".png"]
MAX_BYTES = 150_000


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_are_served_with_a_strict_policy(server, path):
    page = server.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/docs", "/web/api.js"])
def test_what_a_browser_has_is_not_sent_again(server, path):
    etag = server.get(path).headers["etag"]
    again = server.get(path, headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")
    assert (again.headers["etag"], again.headers["cache-control"]) == (etag, "no-cache")


@pytest.mark.parametrize("given", ["bytes=0-4", "bytes=5-2", "bytes=9999999-", "items=0-1", "x"])
@pytest.mark.parametrize("path", ["/docs", "/web/api.js"])
def test_a_range_is_ignored(server, path, given):
    """As RFC 9110, 14.2, allows, and asks for of units that are not known."""
    part = server.get(path, headers={"range": given})
    assert (part.status_code, part.content) == (200, server.get(path).content)
    assert part.headers["accept-ranges"] == "none"


@pytest.mark.parametrize("page", ["index.html", "docs.html"])
def test_what_a_page_loads_is_there(server, page):
    text = (WEB / page).read_text()
    links = re.findall(r'(?:src|href)="([^"#]*)"', text)
    assert links
    for link in links:
        assert not link.startswith("/"), "the service may stand below a prefix"
        assert server.get(f"/{link}").status_code == 200, link


def test_scripts_ask_relative_to_their_page():
    for file in WEB.glob("*.js"):
        assert re.findall(r"[\"'`]/(?:v1|v2|docs|metrics|openapi)[^\"'`]*", file.read_text()) == []


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_nothing_comes_from_elsewhere(file):
    text = file.read_text()
    addresses = re.findall(r"https?://[^\s\"'<>)]+", text)
    assert [a for a in addresses if not a.startswith("http://www.w3.org/2000/svg")] == []
    if file.suffix == ".html":  # the policy allows neither, and the browser would refuse them
        assert not re.search(r"<script>|<style>|\sstyle=|\son\w+=", text)


def test_the_page_is_light():
    others = {"docs.html", "docs.js"}
    assert sum(file.stat().st_size for file in FILES if file.name not in others) <= MAX_BYTES


def test_modules_import_files_that_exist():
    for file in WEB.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"', file.read_text()):
            assert (WEB / name).is_file(), f"{file.name} imports {name}"


def modules(entry):
    """`entry` and what it imports, and they."""
    found, waiting = set(), [entry]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += re.findall(r'from "\./([^"]+)"', (WEB / name).read_text())
    return found


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_scripts_find_their_elements(name):
    text = (WEB / name).read_text()
    entry = "app.js" if name == "index.html" else "docs.js"
    script = "".join((WEB / module).read_text() for module in modules(entry))
    ids = set(re.findall(r'id="([^"]+)"', text))
    wanted = set(re.findall(r'\$\("([^"]+)"\)', script))
    assert wanted <= ids
    fields = set(re.findall(r"<(?:input|select)[^>]*id=\"([^\"]+)\"", text))
    labelled = set(re.findall(r"<label.*?(?:id=\"[^\"]+\".*?)*</label>", text, re.S))
    for field in fields - {"file", "many"}:  # hidden ones, which buttons open
        assert any(f'id="{field}"' in label for label in labelled), f"{field} has no label"
