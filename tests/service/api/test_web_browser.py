"""The pages in a real browser, where there is one, on a real server.

Debian's chromium and the playwright package are optional: `make test` runs without them.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.api.security.keys import append_line, key_line, new_key
from service.codecs.png import encode_png

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# The browser itself writes this line where a server refuses or is gone; no page can keep it back.
NETWORK = "Failed to load resource"
PATIENCE = 15_000  # milliseconds: the machine may be busy


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


KEY = new_key()


@pytest.fixture
def bare_page(browser):
    """A page without a key, that must not have written an error when the test ends."""
    context = browser.new_context(viewport=DESK, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    yield page
    context.close()
    assert [error for error in errors if not error.startswith(NETWORK)] == []


@pytest.fixture
def page(bare_page):
    bare_page.add_init_script(f"sessionStorage.setItem('iafvae-key', '{KEY}')")
    return bare_page


@pytest.fixture(scope="module")
def two_models(launch, tiny, tmp_path_factory):
    """A server with a flat model and one of two groups, that wants a key.

    The second pads, and its alpha is smaller than any p-value of its calibration.
    """
    models, keys = tmp_path_factory.mktemp("web-models"), tmp_path_factory.mktemp("web") / "keys"
    append_line(keys, key_line(KEY, "ada"))
    tiny.write_tiny_bundle(models / "tiny")
    scoring = {**tiny.tiny_manifest()["scoring"], "alpha": 0.001}
    changes = {"name": "duo", "fit": "pad", "scoring": scoring}
    tiny.write_tiny_bundle(models / "duo", latent=tiny.TWO_GROUPS, **changes)
    running = launch(
        IAFVAE_MODELS=str(models), IAFVAE_DEFAULT_MODEL="tiny", IAFVAE_KEYS_FILE=str(keys)
    )
    yield running
    running.process.kill()
    running.process.wait()


def opened(page, running, fragment=""):
    page.goto(f"{running.url}/#{fragment}")
    page.wait_for_selector("#examples button")
    return page


def verdict(page):
    """The p-value that is shown, once it is."""
    playwright.expect(page.locator("#verdict")).to_contain_text("p = ", timeout=PATIENCE)
    return re.search(r"p = (\S+)", page.inner_text("#verdict")).group(1).rstrip(":")


def decided(page, anomalous):
    """The page says so, once the service has: it asks again for another alpha."""
    words = re.compile("^Anomalous" if anomalous else "^Not anomalous")
    playwright.expect(page.locator("#verdict")).to_have_text(words, timeout=PATIENCE)


def files(*arrays):
    pictures = [encode_png(np.asarray(array, np.uint8)) for array in arrays]
    return [
        {"name": f"{place}.png", "mimeType": "image/png", "buffer": picture}
        for place, picture in enumerate(pictures)
    ]


def saved_csv(page):
    with page.expect_download() as download:
        page.click("#save-csv")
    return list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))


def printed(program):
    """What a program of the page's prints."""
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines):
        exec(program, {})  # noqa: S102 - the page's own text is under test
    return lines.getvalue().strip("[]'\n")


def shell_answer(command):
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True
    )
    return httpx.Response(200, text=done.stdout).json()


def held(page, pattern):
    """The requests to `pattern`, as they come; each waits for a word from the test."""
    routes = []
    page.route(pattern, lambda route: routes.append(route))
    return routes


def until(page, condition):
    for _ in range(PATIENCE // 50):
        if condition():
            return
        page.wait_for_timeout(50)
    raise TimeoutError


def test_a_verdict_has_its_evidence_its_place_and_its_map(page, two_models):
    opened(page, two_models)
    page.locator("#samples button").nth(2).click()
    p = float(verdict(page))
    assert page.locator("#histogram rect").count() > 20
    assert page.locator("#histogram .mark").count() == 1
    assert "calibration images" in page.inner_text("#place")
    assert page.locator("#evidence li").count() == 4  # likelihood, two statistics, box
    assert page.locator("#boxes rect").count() >= 1
    slider = page.locator("#alpha")
    slider.focus()
    slider.press("End")
    decided(page, p <= 0.5)
    slider.press("Home")
    decided(page, p <= float(page.inner_text("#alpha-value")))


def test_a_link_and_both_snippets_give_the_same_verdict(page, two_models, monkeypatch):
    monkeypatch.setenv("KEY", KEY)
    opened(page, two_models, "k=64")
    page.locator("#examples button").nth(1).click()
    p = verdict(page)
    page.click("#score-curl")
    exact = shell_answer(page.input_value("#code-text"))["results"][0]["p_value"]
    page.click("#code button")
    page.click("#score-python")
    found = printed(page.input_value("#code-text"))
    page.click("#code button")
    assert float(p) == pytest.approx(exact, rel=0.05)
    assert float(found) == pytest.approx(exact, rel=1e-6)
    page.click("#link")
    assert page.inner_text("#code-head") == "Link to this page as it stands"
    link = page.input_value("#code-text")
    page.goto(f"{two_models.url}/docs")
    page.goto(link)
    assert verdict(page) == p
    assert page.input_value("#k") == "64"


def test_the_snippets_of_a_file_give_its_verdict(page, two_models, tmp_path, monkeypatch):
    monkeypatch.setenv("KEY", KEY)
    monkeypatch.chdir(tmp_path)
    opened(page, two_models, "model=duo")
    [file] = files(np.random.default_rng(0).integers(0, 256, (1, 8, 20)))
    file["name"] = 'a,b;type=c "d" \\e.png'
    (tmp_path / file["name"]).write_bytes(file["buffer"])
    page.set_input_files("#file", file)
    p = float(verdict(page))
    page.click("#score-curl")
    [result] = shell_answer(page.input_value("#code-text"))["results"]
    page.click("#code button")
    page.click("#score-python")
    program = page.input_value("#code-text")
    assert p == pytest.approx(result["p_value"], rel=0.05)
    assert float(printed(program)) == pytest.approx(result["p_value"], rel=1e-6)
    assert printed(program.replace(".p_value", ".status")) == result["status"] == "altered"


def test_many_files_become_a_table_and_a_csv(page, two_models):
    opened(page, two_models)
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 4, 4))
    broken = {"name": "=broken, so.png", "mimeType": "image/png", "buffer": b"nothing"}
    page.set_input_files("#many", [*files(*images), broken])
    page.wait_for_selector("#table tbody tr:nth-child(4)")
    rows = saved_csv(page)
    found = {row["file"]: row for row in rows}
    assert "not" in found["./=broken, so.png"]["error"]  # no formula of a spreadsheet's
    assert [row["p_value"] for row in rows[:3]] == sorted(row["p_value"] for row in rows[:3])
    for place, image in enumerate(images):
        encoded = base64.b64encode(encode_png(image.astype(np.uint8))).decode()
        scored = httpx.post(
            f"{two_models.url}/v1/score",
            json={"images": [encoded]},
            headers={"authorization": f"Bearer {KEY}"},
        ).json()
        assert float(found[f"{place}.png"]["p_value"]) == scored["results"][0]["p_value"]
    page.locator("#table button").first.click()
    assert float(verdict(page)) == pytest.approx(float(rows[0]["p_value"]), rel=0.05)
    page.click("#link")
    assert page.inner_text("#code-head") == "Link to this page, without its image"


def test_a_table_decides_by_the_slider_also_below_the_alpha_of_the_model(page, two_models):
    opened(page, two_models, "model=duo")
    page.set_input_files("#many", files(*np.random.default_rng(0).integers(0, 256, (2, 1, 4, 4))))
    playwright.expect(page.locator("#files-status")).to_contain_text("at p ≤", timeout=PATIENCE)
    assert "no decision" not in page.inner_text("#files-status")
    rows = saved_csv(page)
    assert [row["anomalous"] for row in rows] == [
        str(float(row["p_value"]) <= float(row["alpha"])).lower() for row in rows
    ]
    decide = "async (given) => (await import('/web/look.js')).verdictOf(...given)"
    for alpha, expected in ((0.001, None), (0.01, False), (0.5, True)):
        for status in ("ok", "alpha_too_small"):
            given = [{"status": status, "p_value": 0.2}, alpha, 200]
            assert page.evaluate(decide, given) is expected


def test_a_table_grows_and_is_saved_when_it_is_whole(page, two_models):
    opened(page, two_models)
    page.clock.install()
    sent = files(*np.random.default_rng(0).integers(0, 256, (6, 1, 4, 4)))
    page.set_input_files("#many", sent)
    page.wait_for_selector("#save-csv:enabled")
    asked = held(page, "**/v1/score")
    page.set_input_files("#many", sent)
    until(page, lambda: len(asked) == 3)
    assert page.locator("#table tr").count() == 0
    page.clock.fast_forward(3000)
    asked.pop().continue_()
    page.wait_for_selector("#table tbody tr")
    playwright.expect(page.locator("#files-status")).to_have_text("1 of 6")
    assert page.locator("#save-csv").is_disabled()
    for _ in range(5):
        until(page, lambda: asked)
        asked.pop().continue_()
    page.wait_for_selector("#save-csv:enabled")
    assert page.locator("#table tbody tr").count() == 6
    assert len(saved_csv(page)) == 6


def test_a_table_is_of_the_model_and_k_it_was_begun_with(page, two_models):
    opened(page, two_models)
    waiting = held(page, "**/v1/score")
    page.set_input_files("#many", files(*np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4))))
    until(page, lambda: len(waiting) == 3)
    page.select_option("#model", "duo")
    page.wait_for_selector("#ladder:not([hidden])")
    page.route("**/v1/score", lambda route: route.continue_())
    for route in waiting:
        route.continue_()
    playwright.expect(page.locator("#files-status")).to_contain_text("at p ≤", timeout=PATIENCE)
    assert [row["model"] for row in saved_csv(page)] == ["tiny"] * 5


def test_a_dropped_folder_gives_its_images(page, two_models, tmp_path):
    opened(page, two_models)
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 4, 4))
    for name, file in zip(["one.png", "deep/two.PNG"], files(*images), strict=True):
        (tmp_path / "parts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "parts" / name).write_bytes(file["buffer"])
    (tmp_path / "parts" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    devtools = page.context.new_cdp_session(page)

    def drop(folder):
        data = {"items": [], "files": [str(tmp_path / folder)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": 200, "y": 400, "data": data}
            devtools.send("Input.dispatchDragEvent", event)

    drop("empty")
    playwright.expect(page.locator("#error")).to_contain_text("No PNG", timeout=PATIENCE)
    drop("parts")
    playwright.expect(page.locator("#files-status")).to_contain_text("2 files", timeout=PATIENCE)
    assert {"one.png", "two.PNG"} <= set(page.locator("#table td").all_inner_texts())


def test_latents_move_by_sliders_or_by_groups_and_images_meet_between(page, two_models):
    opened(page, two_models)
    page.locator("#samples button").first.click()
    verdict(page)
    page.click("#sliders-box > summary")
    slider = page.locator("#sliders input").first
    slider.focus()
    slider.press("End")
    page.wait_for_selector("#changed[src]")
    page.click("#take-a")
    page.click("#look-changed")
    page.click("#take-b")
    page.click("#interpolate")
    page.wait_for_selector("#between img")
    page.select_option("#model", "duo")
    page.wait_for_selector("#ladder:not([hidden])")
    page.wait_for_selector("#samples[aria-busy=false] button")
    page.locator("#samples button").first.click()
    page.wait_for_selector("#vary:enabled")
    page.click("#vary")
    page.wait_for_selector("#variations button:nth-child(8)")


def test_changed_images_that_come_late_for_another_model_are_left(page, two_models):
    opened(page, two_models)
    page.locator("#samples button").first.click()
    verdict(page)
    page.click("#take-a")
    page.click("#take-b")
    page.click("#sliders-box > summary")
    asked, between = held(page, "**/v1/sample"), held(page, "**/v1/interpolate")
    page.click("#interpolate")
    page.locator("#sliders input").first.press("End")
    until(page, lambda: asked and between)
    page.select_option("#model", "duo")
    page.unroute("**/v1/sample")
    for late in (asked[0], between[0]):
        late.continue_()
    page.wait_for_selector("#samples[aria-busy=false] button")
    page.wait_for_timeout(500)
    assert page.locator("#between img, #changed[src]").count() == 0
    assert page.locator("#error").is_hidden()
    page.locator("#samples button").first.click()
    page.wait_for_selector("#vary:enabled")
    asked = held(page, "**/v1/sample")
    page.click("#vary")
    until(page, lambda: asked)
    page.select_option("#model", "tiny")
    page.unroute("**/v1/sample")
    asked[0].continue_()
    page.wait_for_selector("#samples[aria-busy=false] button")
    page.wait_for_timeout(500)
    assert page.locator("#variations img").count() == 0


def test_none_kept_is_remembered(page, two_models):
    opened(page, two_models, "model=duo&keep=0")
    assert page.inner_text("#keep-value") == "none"


def test_a_black_image_is_judged_and_an_empty_area_is_not(page, two_models):
    opened(page, two_models)
    page.set_input_files("#file", files(np.zeros((1, 4, 4))))
    verdict(page)
    page.click("#clear")
    playwright.expect(page.locator("#verdict")).to_have_text(re.compile("^Draw something"))


def test_without_a_mouse(page, two_models):
    opened(page, two_models)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    stops = 0
    while page.evaluate("document.activeElement.id") != "choose":
        page.keyboard.press("Tab")
        stops += 1
        assert stops < 12
    page.locator("#samples button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    verdict(page)
    assert page.locator("#samples button").nth(1).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "n", "the images are one stop"


def test_a_refusal_leaves_no_verdict_of_another_image(page, two_models):
    opened(page, two_models)
    page.locator("#samples button").first.click()
    verdict(page)
    page.set_input_files("#file", files(np.full((1, 4, 4000), 99)))
    refusal = re.compile("^No verdict.* cut it")
    playwright.expect(page.locator("#verdict")).to_have_text(refusal, timeout=PATIENCE)
    assert page.locator("#numbers dt").count() == 0
    assert page.locator("#histogram .mark").count() == 0


def test_a_busy_server_is_waited_for_with_a_countdown(page, two_models):
    opened(page, two_models)
    refusals = [1]

    def busy(route):
        if refusals:
            refusals.pop()
            route.fulfill(status=429, headers={"retry-after": "5"}, json={"detail": "full"})
        else:
            route.continue_()

    page.route("**/v1/score", busy)
    page.locator("#samples button").first.click()
    page.wait_for_selector("#notice:not([hidden])")
    assert re.search(r"busy.*again in \d+ s", page.inner_text("#notice"), re.S)
    verdict(page)
    page.wait_for_selector("#notice", state="hidden")


def test_a_file_that_is_gone_is_said(page, two_models, tmp_path):
    opened(page, two_models)
    paths = [tmp_path / "kept.png", tmp_path / "gone.png"]
    for path in paths:
        path.write_bytes(encode_png(np.full((1, 4, 4), 99, np.uint8)))
    page.context.set_offline(True)
    page.set_input_files("#many", paths)
    page.wait_for_selector("#notice:not([hidden])")
    paths[1].unlink()
    page.context.set_offline(False)
    page.dispatch_event("#notice button", "click")
    playwright.expect(page.locator("#files-status")).to_contain_text("1 not read", timeout=PATIENCE)
    errors = {row["file"]: row["error"] for row in saved_csv(page)}
    assert errors["kept.png"] == ""
    assert "has a file changed" in errors["gone.png"]


def test_a_server_that_is_gone_is_said_and_what_was_there_stays(page, two_models):
    opened(page, two_models)
    page.locator("#samples button").first.click()
    verdict(page)
    page.context.set_offline(True)
    page.locator("#examples button").first.click()
    page.wait_for_selector("#notice:not([hidden])")
    assert "does not answer" in page.inner_text("#notice")
    assert page.locator("#samples img").count() == 36
    assert page.get_attribute("#results", "aria-busy") == "true"
    waiting = re.compile("^Waiting")  # no verdict stays beside another image
    playwright.expect(page.locator("#verdict")).to_have_text(waiting, timeout=PATIENCE)
    page.context.set_offline(False)
    page.dispatch_event("#notice button", "click")  # however soon the page itself tries again
    page.wait_for_selector("#results[aria-busy=false]")
    page.wait_for_selector("#notice", state="hidden")
    verdict(page)


def test_what_waits_shows_nothing_of_the_image_before(page, two_models):
    opened(page, two_models)
    page.locator("#samples button").first.click()
    verdict(page)
    assert page.locator("#evidence li").count() > 0
    page.context.set_offline(True)
    page.locator("#examples button").first.click()
    playwright.expect(page.locator("#verdict")).to_have_text(re.compile("^Waiting"))
    for gone in ("#evidence-box", "#map-box", "#numbers", "#reconstruction"):
        playwright.expect(page.locator(gone)).to_be_hidden()
    assert page.inner_text("#largest") == ""
    assert page.get_attribute("#results", "aria-busy") == "true"
    page.context.set_offline(False)
    page.dispatch_event("#notice button", "click")
    verdict(page)


def test_another_model_judges_the_same_image_and_shows_nothing_of_the_one_before(page, two_models):
    opened(page, two_models)
    page.locator("#samples button").first.click()
    verdict(page)
    page.context.set_offline(True)
    page.select_option("#model", "duo")
    page.wait_for_selector("#notice:not([hidden])")
    for gone in ("#samples img", "#examples img"):
        assert page.locator(gone).count() == 0
    page.context.set_offline(False)
    page.dispatch_event("#notice button", "click")
    verdict(page)
    page.wait_for_selector("#samples img")
    page.set_input_files("#file", files(np.full((1, 8, 8), 99)))
    undecided = re.compile("^No decision, p = ")
    playwright.expect(page.locator("#verdict")).to_have_text(undecided, timeout=PATIENCE)
    page.select_option("#model", "tiny")
    playwright.expect(page.locator("#verdict")).to_have_text(undecided, timeout=PATIENCE)
    assert page.inner_text("#seen-caption") == "your file, fitted"


def test_what_comes_late_for_another_model_is_left(page, two_models):
    opened(page, two_models)
    page.locator("#samples button").first.click()
    verdict(page)
    place = page.inner_text("#place")
    of_duo = held(page, "**/duo/**/calibration?*")
    page.select_option("#model", "duo")
    until(page, lambda: of_duo)
    page.select_option("#model", "tiny")
    page.wait_for_selector("#samples[aria-busy=false] button")
    verdict(page)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    of_duo.pop().fulfill(json={"distances": [1.0, 2.0]})
    page.wait_for_timeout(500)
    page.locator("#alpha").press("ArrowRight")
    assert page.inner_text("#place") == place
    assert not [url for url in asked if url.endswith("v1/sample")]
    page.unroute("**/duo/**/calibration?*")
    drawn, of_tiny = held(page, "**/v1/sample"), held(page, "**/tiny/**/calibration?*")
    page.select_option("#model", "duo")
    until(page, lambda: drawn)
    page.select_option("#model", "tiny")
    until(page, lambda: of_tiny)
    drawn.pop().continue_()
    page.wait_for_timeout(500)
    assert page.locator("#samples img").count() == page.locator("#examples img").count() == 0


def test_a_model_without_calibration_scores_all_the_same(page, launch, tiny, tmp_path):
    keys = tmp_path / "keys"
    append_line(keys, key_line(KEY, "ada"))
    tiny.write_tiny_bundle(tmp_path / "models" / "tiny", calibration=None)
    running = launch(IAFVAE_MODELS=str(tmp_path / "models"), IAFVAE_KEYS_FILE=str(keys))
    try:
        opened(page, running)
        assert page.locator("#k option").all_inner_texts() == ["16"]
        page.locator("#examples button").nth(1).click()
        undecided = "No decision: the model, or this K, has no calibration"
        said = page.locator("#verdict")
        playwright.expect(said).to_have_text(undecided, timeout=PATIENCE)
        assert page.locator("#judged").is_hidden()
        assert "nats" in page.inner_text("#numbers")  # what is seen
    finally:
        running.process.kill()
        running.process.wait()


def test_a_photo_of_another_size_is_told_how_it_gets_a_verdict(page, two_models):
    opened(page, two_models)
    page.set_input_files("#file", files(np.full((1, 8, 8), 99)))
    verdict(page)
    notes = page.locator("#notes li").all_inner_texts()
    assert "iafvae-train inspect FOLDER" in notes[0]
    assert not any("_" in note or "images 0" in note for note in notes)


def test_an_answer_that_breaks_off_is_asked_for_again(page, two_models):
    page.add_init_script(
        """
        const real = window.fetch;
        let breaks = 1;
        window.fetch = async (...given) => {
          const response = await real(...given);
          if (!String(given[0]).includes("v1/score") || !breaks--) return response;
          const broken = (controller) => controller.error(new TypeError("network error"));
          return new Response(new ReadableStream({ start: broken }), response);
        };
        """
    )
    opened(page, two_models)
    page.locator("#samples button").first.click()
    page.wait_for_selector("#notice:not([hidden])")
    assert "does not answer" in page.inner_text("#notice")
    verdict(page)
    assert page.locator("#error").is_hidden()


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_what_is_tapped_is_large_enough(page, two_models, path):
    """40 by 40 pixels of the style sheet; WCAG 2.2 asks for 24 (2.5.8), 44 at its highest level."""
    page.set_viewport_size(PHONE)
    if path == "/":
        opened(page, two_models)
        page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
    else:
        page.goto(f"{two_models.url}/docs")
        page.click("#sample > summary")
    small = page.evaluate(
        """() => [...document.querySelectorAll(
          "button, select, input, summary, header a")].filter((node) => node.offsetParent)
          .map((node) => [node.type === "checkbox" ? node.parentElement : node, node])
          .map(([node, { outerHTML }]) => [node.getBoundingClientRect(), outerHTML.slice(0, 80)])
          .filter(([{ width, height }]) => Math.min(width, height) < 39.5)
          .map(([{ width, height }, html]) => `${width}x${height} ${html}`)"""
    )
    assert small == []


def test_the_table_says_which_model_and_each_note_once(page, two_models):
    opened(page, two_models)
    page.set_input_files("#many", files(*np.zeros((3, 1, 8, 8))))
    page.wait_for_selector("#table tbody tr:nth-child(3)")
    playwright.expect(page.locator("#files-status")).to_contain_text("3 files by tiny")
    notes = page.locator("#table .notes li").all_inner_texts()
    assert len(notes) == len(set(notes))
    assert "resized or converted" in notes
    assert page.locator("#table td[data-head=note]").all_inner_texts() == [""] * 3
    page.select_option("#model", "duo")
    page.wait_for_selector("#ladder:not([hidden])")
    assert "by tiny" in page.inner_text("#files-status"), "whose they are"


def test_the_pages_ask_for_a_key(bare_page, two_models):
    page = bare_page
    page.goto(two_models.url)
    for given in ("wrong", KEY):
        page.fill("#key", given)
        page.press("#key", "Enter")
        if given == "wrong":
            page.get_by_text("not known here").wait_for()
    page.wait_for_selector("#samples img")
    page.goto(f"{two_models.url}/docs")
    page.wait_for_selector("#sample > summary")


def test_a_key_that_no_header_can_hold_is_refused_where_it_is_typed(bare_page, two_models):
    page = bare_page
    page.goto(two_models.url)
    page.fill("#key", "abc–def")
    page.press("#key", "Enter")
    assert page.locator("#key:invalid").count() == 1
    assert page.evaluate("sessionStorage.getItem('iafvae-key')") is None
    page.fill("#key", f" {KEY} ")
    page.press("#key", "Enter")
    page.wait_for_selector("#samples img")


def test_the_api_page_sends_and_shows_the_text_as_it_is_written(page, two_models):
    page.goto(f"{two_models.url}/docs")
    page.click("#sample > summary")
    output = page.locator("#sample .output")
    for body, status in (('{"n": 1, "seed": 9007199254740993}', "200"), ('{"n": ', "400")):
        page.fill("#sample textarea", body)
        page.click("#sample button.primary")
        said = output.locator(".status-code")
        playwright.expect(said).to_have_text(re.compile(status), timeout=PATIENCE)
        assert f"'{body}'" in output.locator("pre").last.inner_text()
        if status == "200":
            assert '"seed": 9007199254740993' in output.locator("pre").nth(-2).inner_text()
    assert '"status": 400' in output.inner_text()


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_axe_finds_nothing_and_nothing_is_cut_off(page, two_models, path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    if path == "/":
        opened(page, two_models)
        page.set_input_files("#many", files(*np.zeros((2, 1, 4, 4))))
        page.wait_for_selector("#table td")
        page.locator("#samples button").first.click()
        verdict(page)
        page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
    else:
        page.goto(f"{two_models.url}/docs")
        page.click("#score > summary")
        page.click("#sample > summary")
        page.click("#sample button.primary")
        page.wait_for_selector("#sample .output img")
    for size, scheme in ((DESK, "light"), (PHONE, "dark")):
        page.set_viewport_size(size)
        page.emulate_media(color_scheme=scheme)
        found = axe.run(page).response["violations"]
        assert [(v["id"], [node["html"] for node in v["nodes"]]) for v in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_on_a_phone_a_choice_brings_its_verdict_into_sight(page, two_models):
    page.set_viewport_size(PHONE)
    opened(page, two_models)
    page.locator("#samples button").last.click()
    verdict(page)
    box = page.locator("#verdict").bounding_box()
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= PHONE["height"]
