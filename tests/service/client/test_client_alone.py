"""The client needs httpx and NumPy; of the service it loads the codecs and the errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ALONE = """
import sys
sys.path.insert(0, sys.argv[1])

class Refused:  # as where nothing else is installed
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in %r:
            raise ImportError(name + " is not installed")

sys.meta_path.insert(0, Refused())
import httpx, io, numpy as np
httpx.Client(), httpx.AsyncClient()  # with them comes what they load when they are made
theirs = set(sys.modules)
from service.client import AsyncClient, Client, ScoreTable

def serve(request):
    headers = {"x-iafvae-" + n: "1" for n in
        ("model", "version", "bundle", "provider", "seed", "queue-seconds", "compute-seconds")}
    headers["content-type"] = "application/x-npy"
    return httpx.Response(200, content=request.read(), headers=headers)

http = httpx.Client(transport=httpx.MockTransport(serve), base_url="http://t")
images = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)
answer = Client(http=http).reconstruct(images)
assert np.array_equal(answer.images, images)
assert answer._repr_png_()[:4] == b"\\x89PNG"
# anyio is httpx's own.
tops = {m.partition(".")[0] for m in set(sys.modules) - theirs}
others = tops - sys.stdlib_module_names - {"service", "httpx", "numpy", "anyio"}
print(sorted(name for name in others if not name.startswith("_")))
loaded = {m for m in sys.modules if m.split(".")[0] == "service"}
allowed = {"service", "service.errors"}
print(sorted(m for m in loaded - allowed if m.split(".")[1] not in ("client", "codecs")))
"""
NOT_NEEDED = (
    "PIL",
    "fastapi",
    "starlette",
    "pydantic",
    "onnxruntime",
    "openvino",
    "uvicorn",
    "uvloop",
    "prometheus_client",
    "python_multipart",
    "typer",
    "torch",
    "onnx",
)


def alone(program):
    command = [sys.executable, "-c", program % (NOT_NEEDED,), str(ROOT)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_works_where_nothing_else_is_installed():
    done = alone(ALONE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]", "[]"]


def test_a_planted_violation_is_found():
    done = alone(ALONE.replace("loaded =", "import service.settings; loaded ="))
    assert "is not installed" in done.stderr


def test_a_planted_library_is_found():
    """One that is installed here, and that nobody thought of refusing."""
    done = alone(ALONE.replace("from service.client", "import pluggy\nfrom service.client"))
    assert done.stdout.split()[0] == "['pluggy']", done.stderr
