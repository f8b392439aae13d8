"""The loaded models of a process, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from service.bundle import MANIFEST, BundleError
from service.errors import ShuttingDown, UnknownModel
from service.operations import ModelRuntime
from service.settings import Settings
from service.telemetry import Telemetry

__all__ = ["Registry", "bundle_paths"]


class Registry:
    """Models by name, and which of them answers where none is named."""

    def __init__(self) -> None:
        self._models: dict[str, ModelRuntime] = {}
        self.default = ""
        self.draining = False

    def load(self, settings: Settings, telemetry: Telemetry) -> None:
        """Load and warm every bundle at ``settings.models``; blocks.

        Raises:
            BundleError: a bundle is missing, corrupt, or its name is there twice.
            ProviderUnavailable: the provider that was demanded is not there.
        """
        for path in bundle_paths(settings.models):
            runtime = ModelRuntime.load(
                path,
                provider=settings.provider,
                max_batch_rows=settings.max_batch_rows,
                max_queue_rows=settings.max_queue_rows,
                observe=telemetry.model,
            )
            if runtime.name in self._models:
                other = self._models[runtime.name].bundle.path
                raise BundleError(
                    f"{path} and {other} are both named {runtime.name!r}: rename one of them"
                )
            self._models[runtime.name] = runtime
            telemetry.model_info(
                model=runtime.name,
                version=runtime.bundle.manifest.version,
                bundle=runtime.bundle.hash,
                provider=runtime.provider,
                precision=runtime.precision,
            )
        wanted = settings.default_model
        if wanted is not None and wanted not in self._models:
            raise BundleError(
                f"IAFVAE_DEFAULT_MODEL={wanted!r} is not among the loaded models "
                f"({', '.join(self._models)}): name one of them"
            )
        self.default = wanted or next(iter(self._models))

    def get(self, name: str | None) -> ModelRuntime:
        """The model `name`, or the default one. Raises UnknownModel, ShuttingDown."""
        if not self._models:
            raise ShuttingDown("no model is loaded yet: try again when /readyz answers 200")
        try:
            return self._models[self.default if name is None else name]
        except KeyError:
            raise UnknownModel(
                f"no model {str(name)[:80]!r} is loaded; there are {', '.join(self._models)}"
            ) from None

    def __iter__(self) -> Iterator[ModelRuntime]:
        return iter(self._models.values())

    @property
    def loaded(self) -> bool:
        """Whether `load` has been here."""
        return bool(self._models)

    @property
    def ready(self) -> bool:
        """Whether new requests should be sent here."""
        return not self.draining and bool(self._models) and all(m.ready for m in self)

    @property
    def healthy(self) -> bool:
        """False after a fault that only a new process cures."""
        return all(m.healthy for m in self)

    def drain(self) -> None:
        """Not ready any more; requests that still come are served until `stop`."""
        self.draining = True

    async def start(self) -> None:
        """Start every model's scheduler."""
        for runtime in self:
            await runtime.start()

    async def stop(self, drain_seconds: float) -> None:
        """Refuse new work and give what is in flight `drain_seconds`."""
        self.drain()
        await asyncio.gather(*(runtime.stop(drain_seconds) for runtime in self))


def bundle_paths(path: Path) -> list[Path]:
    """`path` itself if it is a bundle, else the bundles in it, by name. Raises BundleError."""
    if (path / MANIFEST).exists():
        return [path]
    if not path.is_dir():
        raise BundleError(
            f"there is no bundle at {path}: set IAFVAE_MODELS, or --models, to a bundle's "
            "directory or to a directory of bundles"
        )
    # Hidden ones are another process's that is writing a bundle, or died of it.
    found = sorted(
        entry
        for entry in path.iterdir()
        if not entry.name.startswith(".") and (entry / MANIFEST).is_file()
    )
    if not found:
        raise BundleError(
            f"{path} is no bundle and holds none (no {MANIFEST} in it or one level below): "
            "set IAFVAE_MODELS, or --models, to another directory"
        )
    return found
