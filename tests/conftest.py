"""Fixtures that every test may use: the tiny bundle, its model in NumPy, a plain scheduler."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    """A helper module beside this file (`--import-mode=importlib` puts no directory on the
    path)."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module `tests/tiny_bundle.py`: `TinyModel`, `write_tiny_bundle(path)`,
    `tiny_manifest()`."""
    return _load("tiny_bundle")


@pytest.fixture(scope="session")
def tiny_model(tiny: ModuleType):
    """The tiny model in NumPy: `sample`, `decode`, `encode`, `score` and `images(n)`."""
    return tiny.TinyModel.create()


@pytest.fixture(scope="session")
def tiny_bundle(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a small valid bundle, shared by the whole session: do not write into it."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    tiny.write_tiny_bundle(path)
    return path


@pytest.fixture(scope="session")
def plain() -> ModuleType:
    """The module `tests/plain_scheduler.py`: a scheduler on an engine made of plain functions."""
    return _load("plain_scheduler")


@pytest.fixture(scope="session")
def model_bench() -> ModuleType:
    """The module `tests/model_bench.py`: `performer(runtime)` and `score`."""
    return _load("model_bench")


@pytest.fixture(scope="session")
def loaded(tiny_bundle: Path):
    """The tiny bundle as a `ModelRuntime` that is not started."""
    from service.operations import ModelRuntime

    return ModelRuntime.load(tiny_bundle, provider="cpu", workers=2)


@pytest.fixture(scope="session")
def perform(loaded, model_bench: ModuleType):
    """Run an `async def` of the tiny bundle's runtime, started in a loop of its own."""
    return model_bench.performer(loaded)


@pytest.fixture(scope="session")
def ladders() -> ModuleType:
    """The module `tests/ladder_bundle.py`: `CONFIG`, `export_ladder(config, out)`, `pixels`."""
    return _load("ladder_bundle")


@pytest.fixture(scope="session")
def ladder(ladders: ModuleType, tmp_path_factory: pytest.TempPathFactory):
    """A small ladder of the CIFAR-10 shape: `.model` in torch and `.bundle`, exported once."""
    path = tmp_path_factory.mktemp("bundles") / "ladder"
    return ladders.export_ladder(ladders.CONFIG, path, calibrated=True)
