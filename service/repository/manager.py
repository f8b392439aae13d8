"""Loading, reloading and unloading models while requests are served; one such change at a time.

A bundle is opened in a thread: verified, loaded, its known answers computed on this machine. Only
then, and in one step, does it take its place; whatever goes wrong before leaves everything as it
was. So a bundle that does not work here is refused, and the one that it would replace stays.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from service.bundle import BundleError
from service.errors import (
    BundleRefused,
    Conflict,
    IafvaeError,
    ModelLimit,
    ProviderUnavailable,
    ShuttingDown,
)
from service.metrics import Metrics
from service.operations.model import Model
from service.repository.registry import LoadedModel, Registry
from service.repository.store import (
    FOREIGN,
    Fingerprint,
    Found,
    ModelStore,
    Survey,
    bundle_paths,
)
from service.repository.versions import split_reference
from service.settings import Settings

__all__ = ["ModelChange", "ModelManager"]

logger = logging.getLogger("iafvae")

T = TypeVar("T")
Kind = Literal["loaded", "swapped", "unchanged", "unloaded", "chosen"]


class _TooSlow(Exception):  # noqa: N818 - no error of what was slow, which may have one of its own
    """What was begun has not ended in time."""


@dataclass(frozen=True, kw_only=True)
class ModelChange:
    """What became of an operation.

    bundle: hash of what is loaded now, or was until now; replaced: hash of what it took the place
    of; seconds: of the whole operation.
    """

    change: Kind
    directory: str
    model: str
    version: str
    bundle: str
    replaced: str | None = None
    seconds: float = 0.0


class ModelManager:
    """Changes what `registry` holds. `attempted` has the looks of bundles that need no new try."""

    def __init__(self, settings: Settings, registry: Registry, metrics: Metrics) -> None:
        self._settings, self._registry, self._metrics = settings, registry, metrics
        self.store = ModelStore(settings, metrics)
        self.attempted: dict[str, Fingerprint | None] = {}
        self._conflicting: set[str] = set()  # refused for what else is loaded, pinned, the default
        self._doing = ""
        self._task: asyncio.Task[ModelChange] | None = None
        metrics.models.labels("loaded").set_function(lambda: len(registry))
        metrics.models.labels("retiring").set_function(lambda: registry.retiring)
        failed = registry.failed.keys
        metrics.models.labels("failed").set_function(lambda: len(failed() - FOREIGN))
        metrics.models.labels("foreign").set_function(lambda: len(failed() & FOREIGN))

    def load_all(self) -> None:
        """Load every bundle; blocks, and only for a registry that is not started.

        A bundle that cannot be loaded is noted and left, beside one that can; two of one name and
        version are an error, but where the directory is watched.
        Raises BundleError, ProviderUnavailable.
        """
        paths = bundle_paths(self._settings.models)
        if len(paths) > self._settings.max_models:
            raise BundleError(
                f"{self._settings.models} holds {len(paths)} bundles, and IAFVAE_MAX_MODELS is "
                f"{self._settings.max_models}: raise it, or move some away"
            )
        found, strange = self.store.survey()
        for name, reason in strange.items():
            self._registry.failed[name] = reason
            logger.warning("%s %s; it is left alone", self.store.root / name, reason)
        refusal: BundleError | None = None
        for name, (path, looks) in found.items():
            self.attempted[name] = looks
            try:
                self._load_first(name, path)
            except ProviderUnavailable:
                raise
            except Conflict as error:  # neither is bad: whoever put them there must choose
                if not self._settings.watch_seconds:
                    raise BundleError(f"{path}: {error}") from None
                self._attempt(name, looks, error)
                self._note(name, path, error)
            except Exception as error:  # noqa: BLE001 - a bundle may fail in any way
                self._attempt(name, looks, error)
                self._note(name, path, error)
                refusal = refusal or _as_bundle_error(path, error)
        if refusal is not None and not self._registry.models:
            raise refusal
        self._choose_default()

    def _load_first(self, directory: str, path: Path) -> None:
        opening = _begin(lambda: self.store.open(path), f"load {directory}")
        if not wait([opening], self._settings.load_seconds).done:
            raise self._too_slow(path)
        model = LoadedModel(opening.result(), directory)
        self._registry.exchange(new=[model])
        self._count("loaded", model)

    def _choose_default(self) -> None:
        wanted = self._settings.default_model
        if wanted is None:
            return
        try:
            self._prefer(wanted)
        except IafvaeError:
            loaded = ", ".join(model.reference for model in self._registry.models)
            raise BundleError(
                f"IAFVAE_DEFAULT_MODEL={wanted!r} is not among the loaded models ({loaded}): "
                "name one of them, with or without its version"
            ) from None

    def _prefer(self, reference: str) -> None:
        name, version = split_reference(reference, None)
        if version is not None:
            self._registry.pin(str(name), version)
        self._registry.set_default(str(name))

    def survey(self) -> asyncio.Future[Survey]:
        """What `ModelStore.survey` will give, or raise; no end waits for it."""
        return asyncio.wrap_future(_begin(self.store.survey, "look at the models"))

    async def load(self, directory: str, *, again: bool = False) -> ModelChange:
        """Load the bundle in `directory`, in the place of what was loaded from there.

        A bundle that is loaded already stays as it is, but for `again`.
        Raises UnknownBundle, BundleRefused, ModelLimit, Conflict, ShuttingDown.
        """
        return await self._alone(f"loading {directory}", lambda: self._load(directory, again))

    async def reload(self, name: str) -> ModelChange:
        """Load the model `name` (or ``name@version``) anew from its directory. Raises as `load`."""
        model = self._registry.find(name)
        return await self.load(model.directory, again=True)

    async def unload(self, name: str) -> ModelChange:
        """Take the model ``name@version`` out; its requests are answered first.

        Raises UnknownModel, and Conflict for the default model or a pinned version.
        """
        return await self._alone(f"unloading {name}", lambda: self._unload(name))

    def choose(self, name: str) -> ModelChange:
        """Let `name` answer where no model is named, and of ``name@version`` that version for it.

        Raises UnknownModel.
        """
        self._prefer(name)
        self._changed()
        logger.info("%s is the default model", name)
        return _change("chosen", self._registry.find(name))

    def pin(self, name: str, version: str | None) -> ModelChange:
        """Let `version` answer for `name`, or the newest (None). Raises UnknownModel."""
        self._registry.pin(name, version)
        self._changed()
        answering = self._registry.find(name)
        logger.info("%s answers for %s", answering.version, answering.name)
        return _change("chosen", answering)

    async def stop(self) -> None:
        """End what is under way: what it was loading is dropped."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _alone(
        self, doing: str, work: Callable[[], Coroutine[Any, Any, ModelChange]]
    ) -> ModelChange:
        """Run `work` to its end, also when whoever asked has gone; refuse where another one is."""
        if self._registry.draining:
            raise ShuttingDown("the service is stopping: models are not changed any more")
        if self._task is not None and not self._task.done():
            raise Conflict(f"{self._doing} is under way: try again when it has ended")
        self._doing = doing
        self._task = task = asyncio.create_task(work())
        task.add_done_callback(_look)
        return await asyncio.shield(task)

    async def _load(self, directory: str, again: bool) -> ModelChange:
        began = time.monotonic()
        try:
            found = await self._in_time(lambda: self.store.look(directory), f"look at {directory}")
        except _TooSlow:
            raise BundleRefused(
                f"{directory} could not be looked at within IAFVAE_LOAD_SECONDS="
                f"{self._settings.load_seconds:g}: does the disk or network that it lies on answer?"
            ) from None
        old = self._registry.in_directory(directory)
        if old is not None and not again and found.hash == old.runtime.bundle.hash:
            self._settle(directory, found.looks)
            return _change("unchanged", old, began=began)
        self._check_room(old, found)
        try:
            new = LoadedModel(await self._open(found.path, directory), directory)
            gone = await self._publish(new, old, found)
        except Exception as error:
            self._attempt(directory, found.looks, error)
            raise self._note(directory, found.path, error) from error
        self._changed()
        self._settle(directory, found.looks)
        change = _change("swapped" if gone else "loaded", new, gone, began)
        self._count(change.change, new, gone)
        return change

    async def _open(self, path: Path, directory: str) -> Model:
        try:
            return await self._in_time(lambda: self.store.open(path), f"load {directory}")
        except _TooSlow:
            raise self._too_slow(path) from None

    async def _in_time(self, work: Callable[[], T], name: str) -> T:
        """What `work` gives. Raises _TooSlow, and leaves it behind."""
        done = asyncio.wrap_future(_begin(work, name))
        if not (await asyncio.wait([done], timeout=self._settings.load_seconds))[0]:
            done.add_done_callback(_look)
            raise _TooSlow
        return await done

    def _too_slow(self, path: Path) -> BundleError:
        return BundleError(
            f"bundle {path}: was not loaded within IAFVAE_LOAD_SECONDS="
            f"{self._settings.load_seconds:g}: raise it if the bundle is good; what was begun is "
            "left behind, and its memory is held until it ends"
        )

    async def _publish(
        self, new: LoadedModel, old: LoadedModel | None, found: Found
    ) -> list[LoadedModel]:
        """Start `new` and let it answer instead of `old`.

        The same version from a directory that is no more goes as well: that was renamed.
        """
        gone = [
            model
            for model in self._registry.models
            if model is old
            or (model.reference == new.reference and model.directory not in found.present)
        ]
        await new.runtime.start()
        try:
            return self._registry.exchange(gone, [new])
        except Conflict:
            await new.runtime.stop()
            raise

    async def _unload(self, name: str) -> ModelChange:
        model = self._registry.find(name)
        if "@" not in name and len(self._registry.versions(name)) > 1:
            versions = ", ".join(self._registry.versions(name))
            raise Conflict(f"{name} has versions {versions}: say which, as in {model.reference}")
        self._registry.exchange([model])
        self._changed()
        self._count("unloaded", gone=[model])
        return _change("unloaded", model)

    def _check_room(self, old: LoadedModel | None, found: Found) -> None:
        """Raises ModelLimit where one more would be too many to serve, or too many in memory.

        What has no directory any more does not count: it goes, or stays for want of another one.
        """
        registry, limit = self._registry, self._settings.max_models
        stay = [m for m in registry.models if m is not old and m.directory in found.present]
        if len(stay) >= limit:
            raise ModelLimit(
                f"{len(registry)} models are loaded and IAFVAE_MAX_MODELS is {limit}: unload one"
            )
        if len(stay) + (old is not None) + registry.retiring > limit:
            raise ModelLimit(
                f"{registry.retiring} models that were replaced still answer requests: try again "
                "when these have ended"
            )

    def _settle(self, directory: str, looks: Fingerprint | None) -> None:
        self.attempted[directory] = looks
        self._registry.failed.pop(directory, None)

    def _attempt(self, directory: str, looks: Fingerprint | None, error: Exception) -> None:
        """A bundle that was refused needs no new try until it changes, but for what passes."""
        self.attempted[directory] = None if _passes(error) else looks
        if isinstance(error, Conflict):
            self._conflicting.add(directory)

    def _changed(self) -> None:
        """What was refused for what else was there gets a new try."""
        for directory in self._conflicting:
            self.attempted.pop(directory, None)
        self._conflicting.clear()

    def _note(self, directory: str, path: Path, error: Exception) -> IafvaeError:
        """Log and count a failure, and give it as the caller shall see it."""
        reason = str(error)
        # Where it lies is nobody's; "." would be everywhere.
        for root in (self.store.root.resolve(), self.store.root.absolute()):
            reason = reason.replace(f"{root}/", "").replace(str(root), directory)
        if not isinstance(error, BundleError | IafvaeError):
            reason = f"{type(error).__name__}: {reason}"
        known = self._registry.failed.get(directory)
        self._registry.failed[directory] = reason
        self._metrics.load_failures.labels(directory).inc()
        stays = self._registry.in_directory(directory)
        addition = f"; {stays.reference} stays" if stays else ""
        if reason != known:  # once: what passes is tried again at every look
            logger.error("%s was not loaded: %s%s", path, reason, addition)
        return error if isinstance(error, Conflict) else BundleRefused(reason)

    def _count(
        self, change: str, new: LoadedModel | None = None, gone: Iterable[LoadedModel] = ()
    ) -> None:
        for model in gone:
            self._metrics.model_gone(**model.runtime.who)
        if new is not None:
            self._metrics.model_info(**new.runtime.who)
        subject = new or next(iter(gone))
        self._metrics.changes.labels(subject.name, change).inc()
        runtime = subject.runtime
        place, digest = runtime.provider, runtime.bundle.hash
        logger.info("%s %s on %s (bundle %s)", change, subject.reference, place, digest)


def _begin(work: Callable[[], T], name: str) -> Future[T]:
    """Run `work` in a thread of its own, which keeps no process alive: who waits may give up."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - who waits is told
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def _passes(error: BaseException | None) -> bool:
    """Whether the system failed and not the bundle: a disk, a network, the room in memory."""
    while error is not None and not isinstance(error, OSError | MemoryError):
        error = error.__cause__
    return error is not None


def _as_bundle_error(path: Path, error: Exception) -> BundleError:
    if isinstance(error, BundleError):
        return error
    return BundleError(f"bundle {path}: {type(error).__name__}: {error}")


def _look(ended: asyncio.Future[Any]) -> None:
    """Mark the error of `ended` as seen: where the caller has gone, asyncio would log it."""
    if not ended.cancelled():
        ended.exception()


def _change(
    change: Kind, model: LoadedModel, gone: Sequence[LoadedModel] = (), began: float | None = None
) -> ModelChange:
    return ModelChange(
        change=change,
        directory=model.directory,
        model=model.name,
        version=model.version,
        bundle=model.runtime.bundle.hash,
        replaced=gone[0].runtime.bundle.hash if gone else None,
        seconds=0.0 if began is None else round(time.monotonic() - began, 6),
    )
