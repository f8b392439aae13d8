"""The pages: complete, self-contained, and alive in a browser where there is one."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

WEB = Path(__file__).parents[3] / "service" / "web"
FILES = sorted(WEB.iterdir())


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_are_served_with_a_strict_policy(server, path):
    page = server.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]


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


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_comes_from_elsewhere(file):
    text = file.read_text()
    addresses = re.findall(r"https?://[^\s\"'<>)]+", text)
    assert [a for a in addresses if not a.startswith("http://www.w3.org/2000/svg")] == []
    if file.suffix == ".html":  # the policy allows neither, and the browser would refuse them
        assert not re.search(r"<script>|<style>|\sstyle=|\son\w+=", text)


def test_modules_import_files_that_exist():
    for file in WEB.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"', file.read_text()):
            assert (WEB / name).is_file(), f"{file.name} imports {name}"


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_scripts_find_their_elements(name):
    text = (WEB / name).read_text()
    script = (WEB / ("app.js" if name == "index.html" else "docs.js")).read_text()
    ids = set(re.findall(r'id="([^"]+)"', text))
    wanted = set(re.findall(r'\$\("([^"]+)"\)', script))
    assert wanted <= ids
    fields = set(re.findall(r"<(?:input|select)[^>]*id=\"([^\"]+)\"", text))
    labelled = set(re.findall(r"<label.*?(?:id=\"[^\"]+\".*?)*</label>", text, re.S))
    for field in fields - {"file"}:
        assert any(f'id="{field}"' in label for label in labelled), f"{field} has no label"


# Debian's chromium and the playwright package are optional: `make test` runs without them.
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HAS_BROWSER = CHROMIUM is not None and importlib.util.find_spec("playwright") is not None

if HAS_BROWSER:

    @pytest.mark.browser
    def test_the_page_draws_scores_and_interpolates(running):
        from playwright.sync_api import sync_playwright

        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=CHROMIUM,
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
            page = browser.new_page()
            errors = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
            page.goto(running.url)
            page.wait_for_selector("#samples img")
            page.locator("#samples button").first.click()
            page.wait_for_selector("#numbers dd")
            assert "p = " in page.inner_text("#verdict")
            page.click("#take-a")
            page.locator("#samples button").nth(1).click()
            page.click("#take-b")
            page.click("#interpolate")
            page.wait_for_selector("#between img")
            page.goto(f"{running.url}/docs")
            page.click("#sample > summary")
            page.click("#sample button.primary")
            page.wait_for_selector("#sample .output img")
            browser.close()
            assert errors == []

    @pytest.mark.browser
    def test_the_pages_ask_for_a_key(start_server, tmp_path):
        from playwright.sync_api import sync_playwright

        from service.api.security.keys import append_line, key_line, new_key

        key, file = new_key(), tmp_path / "keys.txt"
        append_line(file, key_line(key, "ada"))
        running = start_server(IAFVAE_KEYS_FILE=str(file))
        answers = ["wrong", key]
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=CHROMIUM,
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
            page = browser.new_page()
            page.on("dialog", lambda dialog: dialog.accept(answers.pop(0)))
            page.goto(running.url)
            page.wait_for_selector("#error:not([hidden])")
            assert "key is not known" in page.inner_text("#error")
            page.goto(running.url)
            page.wait_for_selector("#samples img")
            page.goto(f"{running.url}/docs")
            page.wait_for_selector("#sample > summary")
            browser.close()
        assert answers == []
