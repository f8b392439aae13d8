"""Fixtures that every test may use: small bundles, their models, a plain scheduler."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

# How long an example takes is the machine's affair, and no test's.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


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
    _load("tiny_model")  # which it imports
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
def edition(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write (once) the tiny bundle with weights of its own: `edition("1.9.0", name="tiny")`."""
    written: dict[tuple[str, str, str], Path] = {}

    def write(version: str, *, name: str = "tiny", build: str = "") -> Path:
        key = (name, version, build)
        if key not in written:
            path = tmp_path_factory.mktemp("editions") / "bundle"
            weights = tiny.TinyModel.create(1 + len(written))
            tiny.write_tiny_bundle(path, weights, name=name, version=version)
            written[key] = path
        return written[key]

    return write


@pytest.fixture(scope="session")
def put() -> Callable[[Path, Path], Path]:
    """Copy a bundle to where another one may stand; whoever looks sees the old or the new one."""

    def copy(bundle: Path, destination: Path) -> Path:
        staging = destination.with_name(f".{destination.name}.new")
        shutil.copytree(bundle, staging)
        if destination.exists():
            old = destination.with_name(f".{destination.name}.old")
            destination.rename(old)
            staging.rename(destination)
            shutil.rmtree(old)
        else:
            staging.rename(destination)
        return destination

    return copy


@pytest.fixture(scope="session")
def sites() -> ModuleType:
    """The module `tests/model_sites.py`: `Site(client)` and `Watched(client)`."""
    return _load("model_sites")


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
    """The tiny bundle as a `Model` that is not started."""
    from service.operations.model import Model

    return Model.load(tiny_bundle, provider="cpu", workers=2)


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


@pytest.fixture(scope="session")
def convs() -> ModuleType:
    """The module `tests/conv_bundle.py`: `DETAILS`, `conv_model(**changes)`, `pixels(n)`."""
    return _load("conv_bundle")


@pytest.fixture(scope="session")
def conv(convs: ModuleType, tmp_path_factory: pytest.TempPathFactory):
    """A small convolutional model: `.model` in torch, its `.graphs` and `.bundle`, exported
    once."""
    return convs.export_conv(tmp_path_factory.mktemp("export") / "tiny")
