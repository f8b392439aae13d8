"""The models that answer, by name and version, and how one takes another's place.

Everything here runs on the event loop, where nothing comes between two statements: a request sees
the table before a change or after it. A model that is taken out still answers the requests that
hold a lease of it, and only when all of these have ended are its threads stopped and its memory
freed. So no request is refused or lost because of a change, but for streams that are still not read
after minutes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from service.engine.hardware import give_memory_back
from service.errors import Conflict, ShuttingDown, UnknownModel
from service.operations.model import Model
from service.repository.versions import answering, newest_first, split_reference
from service.verdicts.drift import Drift

__all__ = ["LoadedModel", "Registry"]

logger = logging.getLogger("iafvae")

# After which a model that was replaced goes: a stream that is read slowly would hold it for days.
RETIRED_SECONDS = 300.0
Table = dict[str, dict[str, "LoadedModel"]]  # name -> version, newest first -> model


@dataclass(eq=False)
class LoadedModel:
    """A model, the directory of its bundle, and the requests that hold it.

    As a context it is held, and gives the model: ``with registry.find(name) as model``.
    """

    runtime: Model
    directory: str
    leases: int = 0
    tasks: set[asyncio.Task[object] | None] = field(default_factory=set)
    unused: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """As its manifest says."""
        return self.runtime.name

    @property
    def version(self) -> str:
        """As its manifest says."""
        return self.runtime.version

    @property
    def reference(self) -> str:
        """``name@version``"""
        return f"{self.name}@{self.version}"

    def __enter__(self) -> Model:
        self.leases += 1
        self.tasks.add(asyncio.current_task())
        return self.runtime

    def __exit__(self, *error: object) -> None:
        self.leases -= 1
        self.tasks.discard(asyncio.current_task())
        if not self.leases:
            self.unused.set()

    async def wait_unused(self) -> None:
        """Wait until no request holds the model; it must be out of the registry already."""
        while self.leases:
            self.unused.clear()
            await self.unused.wait()


class Registry:
    """Loaded models, and which of them answers where no name or no version is given.

    Of a name's versions the one that is pinned answers, else its newest release, else its newest
    pre-release. `failed` says which directories hold a bundle that could not be loaded, and why.
    """

    def __init__(self, drain_seconds: float = 20.0) -> None:
        self._drain_seconds = drain_seconds
        self._table: Table = {}
        self._answering: dict[str, LoadedModel] = {}
        self._pins: dict[str, str] = {}
        self._retiring: dict[LoadedModel, asyncio.Task[None]] = {}
        self.default = ""
        self.draining = False
        self.failed: dict[str, str] = {}

    def find(self, name: str | None = None, version: str | None = None) -> LoadedModel:
        """The model `name` (also ``name@version``), or the default one.

        Held as a context it answers until that ends, also if it is unloaded meanwhile. Raises
        UnknownModel, ShuttingDown, and InvalidInput for two versions.
        """
        if not self._table:
            raise ShuttingDown("no model is loaded yet: try again when /readyz answers 200")
        if name is not None and "@" in name:
            name, version = split_reference(name, version)
        name = self.default if name is None else name
        try:
            return self._answering[name] if version is None else self._table[name][version]
        except KeyError:
            raise self._unknown(name, version) from None

    def versions(self, name: str) -> tuple[str, ...]:
        """The loaded versions of `name`, newest first. Raises UnknownModel."""
        if name not in self._table:
            raise self._unknown(name, None)
        return tuple(self._table[name])

    def pinned(self, name: str) -> str | None:
        """The version that an operator chose to answer for `name`."""
        return self._pins.get(name)

    def in_directory(self, directory: str) -> LoadedModel | None:
        """The model that was loaded from `directory`."""
        return next((model for model in self.models if model.directory == directory), None)

    @property
    def models(self) -> tuple[LoadedModel, ...]:
        """All of them: by name, the newest version first."""
        return tuple(model for versions in self._table.values() for model in versions.values())

    def queued_rows(self) -> dict[tuple[str, str], int]:
        """Rows that wait, by operation and name; versions of one model add up."""
        waiting: dict[tuple[str, str], int] = {}
        for model in (*self.models, *self._retiring):
            for operation, rows in model.runtime.scheduler.queued_rows_by_operation.items():
                key = operation, model.name
                waiting[key] = waiting.get(key, 0) + rows
        return waiting

    def drift(self) -> dict[tuple[str, str], Drift]:
        """Of each model that is calibrated, by name and version."""
        return {
            (model.name, model.version): model.runtime.drift
            for model in self.models
            if model.runtime.drift is not None
        }

    @property
    def retiring(self) -> int:
        """How many were taken out but still answer somebody."""
        return len(self._retiring)

    def __len__(self) -> int:
        return sum(map(len, self._table.values()))

    def _unknown(self, name: str, version: str | None) -> UnknownModel:
        if name in self._table:
            return UnknownModel(
                f"no version {str(version)[:80]!r} of {name} is loaded; "
                f"there are {', '.join(self._table[name])}"
            )
        return UnknownModel(f"no model {name[:80]!r} is loaded; there are {', '.join(self._table)}")

    def exchange(
        self, old: Iterable[LoadedModel] = (), new: Iterable[LoadedModel] = ()
    ) -> list[LoadedModel]:
        """Take `old` out and put `new` in, in one step; gives what was taken out.

        `new` must be started where requests are served already. What is taken out is stopped when
        its last request has ended. Raises Conflict where nothing would answer as the default or as
        a pinned version, or one version would be there twice; then nothing has changed.
        """
        gone, come = list(old), list(new)
        table = _table([*(model for model in self.models if model not in gone), *come])
        self._check(table)
        self._settle(table, self._pins)
        if not self.default and come:
            self.default = come[0].name
        for model in gone:
            self._retire(model)
        return gone

    async def wait_retired(self) -> None:
        """Wait until every model that was taken out has answered its requests and is freed."""
        await asyncio.gather(*self._retiring.values())

    def set_default(self, name: str) -> None:
        """Let `name` answer where no model is named. Raises UnknownModel."""
        self.versions(name)
        self.default = name

    def pin(self, name: str, version: str | None) -> None:
        """Let `version` answer for `name` (also ``name@version``); None: the newest again.

        Raises UnknownModel, and InvalidInput for two versions.
        """
        model = self.find(name, version)
        if "@" in name:
            version = model.version
        name = model.name
        pins = {key: value for key, value in self._pins.items() if key != name}
        self._settle(self._table, pins if version is None else pins | {name: version})

    def _check(self, table: Table) -> None:
        if self.default and self.default not in table:
            raise Conflict(
                f"{self.default} is the default model, so it stays: make another one the default "
                "first"
            )
        for name, version in self._pins.items():
            if version not in table.get(name, {}):
                raise Conflict(f"{name}@{version} is pinned, so it stays: unpin {name} first")

    def _settle(self, table: Table, pins: dict[str, str]) -> None:
        self._table, self._pins = table, pins
        self._answering = {
            name: versions[pins.get(name) or answering(versions)]
            for name, versions in table.items()
        }

    def _retire(self, model: LoadedModel) -> None:
        task = asyncio.get_running_loop().create_task(self._end(model))
        self._retiring[model] = task
        task.add_done_callback(lambda _: self._retiring.pop(model, None))

    async def _end(self, model: LoadedModel) -> None:
        try:
            async with asyncio.timeout(RETIRED_SECONDS):
                await model.wait_unused()
        except TimeoutError:
            logger.warning("%s goes: %d answers are broken off", model.reference, model.leases)
            for task in filter(None, list(model.tasks)):
                task.cancel()
            await model.wait_unused()
        await model.runtime.stop(self._drain_seconds)
        await asyncio.to_thread(give_memory_back)
        logger.info("%s has ended; its memory is freed", model.reference)

    @property
    def ready(self) -> bool:
        """Whether new requests should be sent here: the default model answers, all are healthy."""
        loaded = bool(self._table)
        return not self.draining and loaded and self.find().runtime.ready and self.healthy

    @property
    def healthy(self) -> bool:
        """False after a fault that only a new process cures."""
        return all(model.runtime.healthy for model in (*self.models, *self._retiring))

    def drain(self) -> None:
        """Not ready any more; requests that still come are served until `stop`."""
        self.draining = True

    async def start(self) -> None:
        """Start every model's scheduler."""
        for model in self.models:
            await model.runtime.start()

    async def stop(self, drain_seconds: float) -> None:
        """Refuse new work and give what is in flight `drain_seconds`."""
        self.drain()
        for task in self._retiring.values():
            task.cancel()
        models = (*self.models, *self._retiring)
        await asyncio.gather(*(model.runtime.stop(drain_seconds) for model in models))


def _table(models: Sequence[LoadedModel]) -> Table:
    """`models` by name and version. Raises Conflict where two have both in common."""
    by_name: dict[str, dict[str, LoadedModel]] = {}
    for model in models:
        other = by_name.setdefault(model.name, {}).setdefault(model.version, model)
        if other is not model:
            raise Conflict(
                f"{model.directory} and {other.directory} are both named {model.name!r}, version "
                f"{model.version}: rename one of them, or give it another version"
            )
    return {
        name: {version: versions[version] for version in newest_first(versions)}
        for name, versions in sorted(by_name.items())
    }
