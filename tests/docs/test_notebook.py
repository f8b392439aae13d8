"""The notebook runs from the top, and prints what it shows."""

from __future__ import annotations

import json
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_notebook_prints_what_it_shows(place, pages):
    book = json.loads((DOCS / "noise-to-p-value.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    done = place.run("python", "\n".join("".join(cell["source"]) for cell in cells))
    assert done.returncode == 0, done.stderr
    outputs = [output for cell in cells for output in cell["outputs"]]
    shown = "".join("".join(output.get("text", [])) for output in outputs)
    assert pages.agree(done.stdout, shown), f"printed\n{done.stdout}\nshown\n{shown}"
    assert all("image/png" in o["data"] for o in outputs if o["output_type"] == "execute_result")
