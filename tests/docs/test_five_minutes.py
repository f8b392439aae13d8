"""From a fresh clone, README alone leads to samples, a score, a verdict, the page and health."""

from __future__ import annotations

import json
import time

import pytest

MINUTES = 5
VERDICT = "/v1/score -F files=@photo.png -F resize=true -F convert=true"
URL = "http://127.0.0.1:8000"


@pytest.mark.timeout(600)
def test_who_knows_nothing_gets_there_in_five_minutes(clone, pages):
    """What `make serve` installs is here already; what it starts, and what follows, is timed."""
    start = time.monotonic()
    readme = clone.directory / "README.md"
    clone.serve("IAFVAE_PORT=8000 iafvae serve")
    for block in pages.blocks(readme):
        if block.kind == "run":
            done = clone.run(block.language, block.text)
            assert done.returncode == 0, f"{block.where}\n{done.stderr}"
    assert (clone.directory / "sheet.png").read_bytes()[:4] == b"\x89PNG"
    text = readme.read_text(encoding="utf-8")
    for named in (VERDICT, f"{URL}/>", f"{URL}/readyz"):
        assert named in text, named
    scored = json.loads(clone.run("sh", f"curl -sf {URL}{VERDICT}").stdout)["results"][0]
    assert scored["log_likelihood_nats"] < 0
    assert 0 < scored["p_value"] <= 1
    assert scored["anomalous"] in (True, False) or scored["status"] == "altered"
    assert "<h1>" in clone.run("sh", f"curl -sf {URL}/").stdout
    assert json.loads(clone.run("sh", f"curl -sf {URL}/readyz").stdout) == {"status": "ready"}
    assert time.monotonic() - start < 60 * MINUTES
