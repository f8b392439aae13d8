"""Following the directory of models: what comes is loaded, what changes is swapped, what goes is
unloaded.

It is looked at every so often; no notification of the operating system is needed, so network file
systems and mounted volumes are followed as well. A bundle is touched only when it looks the same
at two looks in a row, so one that is being copied is left alone, and one that was refused is not
tried again until it changes, unless the system failed and not the bundle: a disk, the memory.
"""

from __future__ import annotations

import asyncio
import logging

from service.errors import IafvaeError, ModelLimit
from service.repository.manager import ModelManager
from service.repository.registry import Registry
from service.repository.store import Fingerprint

__all__ = ["Watcher"]

logger = logging.getLogger("iafvae")
SLOW_SECONDS = 30.0  # of a listing that it is said of


class Watcher:
    """Keeps `registry` in step with the directory of `manager`, by `run` or single looks.

    The default model and pinned versions stay when their directory goes, and an empty or unreadable
    directory unloads nothing: what is not mounted at the moment has not been removed by anybody.
    """

    def __init__(self, manager: ModelManager, registry: Registry) -> None:
        self._manager, self._registry = manager, registry
        self._before: dict[str, Fingerprint] = {}
        self._missed: set[str] = set()
        self._strange: set[str] = set()
        self._said: dict[str, str] = {}  # at this look, and at the last one
        self._said_before: dict[str, str] = {}

    async def run(self, seconds: float) -> None:
        """Look every `seconds`, until cancelled."""
        logger.info("looking at %s every %g s", self._manager.store.root, seconds)
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.look()
            except Exception:
                logger.exception("the models could not be looked at; trying again")

    async def look(self) -> None:
        """Do what the difference to the last look asks for."""
        self._said_before, self._said = self._said, {}
        try:
            survey = self._manager.survey()
            if not (await asyncio.wait([survey], timeout=SLOW_SECONDS))[0]:
                self._say("", "the models are not listed yet (a disk or network does not answer?)")
            found, strange = await survey
        except OSError as error:
            self._say("", f"the models cannot be listed ({error.strerror}); what is loaded stays")
            return
        self._note_strange(strange)
        now = {name: looks for name, (_, looks) in found.items() if looks is not None}
        for directory, looks in now.items():
            at_rest = looks == self._before.get(directory)
            if at_rest and looks != self._manager.attempted.get(directory):
                await self._load(directory)
        self._before = now
        if now:
            await self._forget({*found, *strange})
        else:
            self._say("", "there is no bundle at all any more; what is loaded stays")

    def _note_strange(self, strange: dict[str, str]) -> None:
        """Say what cannot be looked at; what can be again is tried again, changed or not."""
        for name, reason in strange.items():
            self._registry.failed[name] = reason
            self._say(name, f"{self._manager.store.root / name} {reason}; it is left alone")
        for name in self._strange - strange.keys():
            self._manager.attempted.pop(name, None)
        self._strange = set(strange)

    async def _load(self, directory: str) -> None:
        try:
            await self._manager.load(directory)
        except ModelLimit as error:  # this passes without a change of the bundle
            self._registry.failed[directory] = str(error)
            self._say(directory, f"{directory} is not loaded yet: {error}")
        except IafvaeError as error:
            logger.debug("%s: %s", directory, error)  # the manager has said it, or it is busy
        except OSError as error:  # the others are looked at all the same
            self._registry.failed[directory] = str(error.strerror)
            self._say(directory, f"{directory} cannot be read ({error.strerror})")

    async def _forget(self, now: set[str]) -> None:
        """Unload what was missing at the last look too."""
        registry, attempted = self._registry, self._manager.attempted
        for directory in now & self._missed:
            registry.failed.pop(directory, None)  # it is there again
        loaded = {model.directory for model in registry.models}
        missing = (loaded | registry.failed.keys() | attempted.keys()) - now
        for directory in sorted(missing & self._missed):
            if directory in attempted:
                del attempted[directory]
                # A refused one may have had the same name and version: it is tried once more.
                for refused in now & registry.failed.keys():
                    attempted.pop(refused, None)
            registry.failed.pop(directory, None)
            await self._unload(directory)
        self._missed = missing

    async def _unload(self, directory: str) -> None:
        model = self._registry.in_directory(directory)
        if model is None:
            return
        try:
            await self._manager.unload(model.reference)
        except IafvaeError as error:
            self._registry.failed[directory] = f"its directory has gone; {error}"
            self._say(directory, f"the directory {directory} has gone; {error}")

    def _say(self, subject: str, text: str) -> None:
        """Log it, but not again at every look while it lasts."""
        if self._said_before.get(subject) != text:
            logger.warning("%s", text)
        self._said[subject] = text
