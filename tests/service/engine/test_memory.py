"""What loaded models hold of the memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HELD = """
import asyncio, gc, re, sys
from pathlib import Path
from service.engine import onnxruntime_engine
from service.operations.model import Model

if "apart" in sys.argv:
    onnxruntime_engine._share_memory = lambda: None

def held():
    gc.collect()
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def load(name):
    return Model.load(Path("service/bundles") / name, provider="cpu")

before = held()
models = [load(path.name) for path in sorted(Path("service/bundles").iterdir())]
print(held() - before)
for rounds in range(2):
    for again in range(3):
        model = models.pop()
        name = model.name
        asyncio.run(model.stop())
        del model
        models.append(load(name))
    print(held() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no such figure here")
def test_all_models_that_ship_share_their_memory_and_give_it_to_their_successors():
    (at_first, replaced, later), (apart, *_) = (
        map(
            float,
            subprocess.check_output([sys.executable, "-c", HELD, how], text=True, cwd=ROOT).split(),
        )
        for how in ("shared", "apart")
    )
    assert at_first < 240, "MiB"
    assert at_first < 0.8 * apart, "where every graph holds the memory of its largest batch"
    assert replaced < at_first + 40  # 9 to 27 more, which depends on what ran beside what
    assert later < replaced + 20, "what the first ones left serves all others"


FREED = """
import re, sys
from pathlib import Path
from service.engine.hardware import tune_allocator

def held():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

if sys.argv[1] == "mapped":
    tune_allocator()
del (first := {"body": b"x" * 30_000_000})["body"]  # from now on glibc keeps blocks as large
before, bodies, small = held(), [], []
for _ in range(3):
    bodies.append(b"x" * 20_000_000)
    small.append([b"y" * (1000 + each) for each in range(300)])  # what outlives the body
bodies.clear()
print(held() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_bodies_are_the_systems_again():
    kept, mapped = (
        float(subprocess.check_output([sys.executable, "-c", FREED, how], cwd=ROOT))
        for how in ("kept", "mapped")
    )
    assert mapped < 5, "MiB of three bodies of 19"
    assert kept > mapped + 15, "else there is nothing to be set"
