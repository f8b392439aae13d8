"""Fixtures that every test may use: the tiny bundle and its model in NumPy."""

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
