"""Long work beside the event loop, for which callers take turns: decoding, in processes that are
killed at a request's deadline, and other work on bytes, in threads.

A decoder cannot be interrupted, holds the interpreter and may take seconds and gigabytes, so that
all that is large or may be dear goes to a few kept processes, where callers take turns. What is
dear has as many of them as there are cores, and what is not has as many again, so that it never
waits for what is.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from service import errors
from service.codecs.images import (
    Fit,
    Fitted,
    PixelLimits,
    Shape,
    decoding_work,
    fit_array,
    fit_files,
)
from service.codecs.json_body import json_images
from service.codecs.worker import LENGTH, Job
from service.errors import IafvaeError

__all__ = ["DecoderPool", "Threads", "Turns"]

QUICK_WORK = 2**20  # pixels times passes of a request's files, 30 ms; all above it is dear
QUICK_JSON = 2**20  # bytes
FILES_A_JOB = 16  # then another caller has its turn
MAX_CORES = 8
# Of low priority before it imports anything: requests that wait for nothing to be decoded go first.
WORKER = """\
import os
if hasattr(os, "nice"):
    os.nice(5)
from service.codecs.worker import main
main()
"""
MAX_BYTES = 2**30  # of a process, beyond what it has when it starts
IDLE_SECONDS = 60.0  # then all processes but one end
MAX_SAID_BYTES = 2**20  # of JSON
# What a worker that died, or is not itself any more, comes to.
STRANGE = (EOFError, ConnectionError, ValueError, KeyError, TypeError, RecursionError)
PIPE_BYTES, PIECE_BYTES = 2**20, 2**16
T = TypeVar("T")


class DecoderPool:
    """Images of requests as a model takes them, within deadlines on the event loop's clock.

    cores: that this process may use; of them at most 8 decode. Processes start when they are
    needed.
    """

    def __init__(self, cores: int) -> None:
        count = min(cores, MAX_CORES)
        self._quick, self._dear = Turns(count), Turns(count)
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._closed = False

    async def decode(
        self,
        files: Sequence[bytes | memoryview],
        shape: Shape,
        fit: Fit,
        limits: PixelLimits,
        names: Sequence[str] | None = None,
        *,
        work: float | None = None,
        deadline: float | None = None,
        caller: str = "",
    ) -> Fitted:
        """As `images.fit_files`; work: as `images.decoding_work` says it, where it is known.

        Raises also DeadlineExceeded, Overloaded where no process can be started, and ShuttingDown
        after `close`.
        """
        names = names or [f"image {index}" for index in range(len(files))]
        if work is None:
            work, _ = decoding_work(files, shape, fit, limits, names)
        turns = self._quick if work <= QUICK_WORK else self._dear
        parts: list[Fitted] = []
        left = limits.total
        async with _until(deadline):
            for start in range(0, len(files), FILES_A_JOB):
                part = slice(start, start + FILES_A_JOB)
                bounds = PixelLimits(image=limits.image, total=left)
                async with turns.turn(caller):
                    data = [pickle.PickleBuffer(file) for file in files[part]]
                    arguments = (data, shape, fit, bounds, names[part])
                    parts.append(await self._run((fit_files, arguments), _fitted))
                left -= parts[-1].decoded
        return _joined(parts)

    async def fit(
        self,
        array: NDArray[np.uint8],
        shape: Shape,
        fit: Fit,
        *,
        deadline: float | None = None,
        caller: str = "",
    ) -> Fitted:
        """As `images.fit_array`; raises also what `decode` does."""
        turns = self._quick if array.size <= QUICK_WORK else self._dear
        async with _until(deadline), turns.turn(caller):
            return await self._run((fit_array, (array, shape, fit)), _fitted)

    async def parse_json(
        self, body: bytes, max_items: int, *, deadline: float | None = None, caller: str = ""
    ) -> tuple[dict[str, Any], list[bytes]]:
        """As `json_body.json_images`; raises also what `decode` does."""
        turns = self._quick if len(body) <= QUICK_JSON else self._dear
        async with _until(deadline), turns.turn(caller):
            job = (json_images, (pickle.PickleBuffer(body), max_items))
            return await self._run(job, _images)

    @property
    def processes(self) -> int:
        """How many there are now."""
        return len(self._idle) + len(self._busy)

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn."""
        return self._quick.waiting + self._dear.waiting

    async def close(self) -> None:
        """End all processes at once; what they work on fails with ShuttingDown."""
        self._closed = True
        for worker in self._idle:
            worker.retirement.cancel()
        workers = [*self._busy, *self._idle]
        self._idle.clear()
        await asyncio.gather(*(worker.kill() for worker in workers))

    async def _run(self, job: Job, read: Callable[[dict[str, Any], bytes], T]) -> T:
        """A worker's answer. One that is interrupted, or dies, is not kept."""
        worker = await self._worker()
        self._busy.add(worker)
        try:
            said, data = await worker.ask(job)
            answer = _error(said) if "error" in said else read(said, data)
        except BaseException as error:
            await worker.kill()
            if not isinstance(error, STRANGE):
                raise
            self._refuse_if_closed()
            raise errors.UndecodableImage(
                "the decoder died of these images: save them again with another program"
            ) from None
        finally:
            self._busy.discard(worker)
        self._keep(worker)
        if isinstance(answer, IafvaeError):
            try:
                raise answer
            finally:
                del answer  # or the error and this frame would hold each other
        return answer

    async def _worker(self) -> _Worker:
        self._refuse_if_closed()
        while self._idle:
            worker = self._idle.pop()
            worker.retirement.cancel()
            if worker.is_alive:
                return worker
        try:
            worker = await _Worker.start()
        except OSError as error:  # no more descriptors, processes or memory
            raise errors.Overloaded(
                f"no process can be started to decode images ({error.strerror}): send the request "
                "again later"
            ) from None
        if self._closed:  # while it started
            await worker.kill()
            self._refuse_if_closed()
        return worker

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise errors.ShuttingDown("the service shuts down: send the request to another replica")

    def _keep(self, worker: _Worker) -> None:
        self._idle.append(worker)
        loop = asyncio.get_running_loop()
        worker.retirement = loop.call_later(IDLE_SECONDS, self._retire, worker)

    def _retire(self, worker: _Worker) -> None:
        """End `worker`, which has had nothing to do, unless it is the only one."""
        if worker in self._idle and len(self._idle) > 1:
            self._idle.remove(worker)
            worker.end()


class Turns:
    """`slots` that callers get in turn; share: how many one caller may have at once (None: all)."""

    def __init__(self, slots: int, share: int | None = None) -> None:
        self._free, self._share = slots, share or slots
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # whose turn is next is first

    @property
    def waiting(self) -> int:
        """How many callers wait for a slot."""
        queues = self._waiting.values()
        return sum(not granted.cancelled() for queue in queues for granted in queue)

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[None]:
        """Hold one slot while the context lasts."""
        await self.take(caller)
        try:
            yield
        finally:
            self.give(caller)

    async def take(self, caller: str) -> None:
        """Wait for a slot, which is held until `give`."""
        granted = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(granted)
        self._grant()
        try:
            await granted
        except BaseException:
            if not granted.cancelled():  # it came in the moment that nobody wanted it any more
                self.give(caller)
            raise

    def give(self, caller: str) -> None:
        """Give a slot of `caller` back."""
        self._free += 1
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]
        self._grant()

    def _grant(self) -> None:
        while self._free:
            able = (caller for caller in self._waiting if self._held[caller] < self._share)
            if (caller := next(able, None)) is None:
                return
            queue = self._waiting.pop(caller)
            granted = queue.popleft()
            if queue:
                self._waiting[caller] = queue  # behind all others
            if not granted.cancelled():
                self._free -= 1
                self._held[caller] += 1
                granted.set_result(None)


class Threads:
    """`count` threads, of which one caller has at most `share` at once (None: all)."""

    def __init__(self, count: int, share: int | None = None) -> None:
        self._executor, self._turns = ThreadPoolExecutor(count, "codec"), Turns(count, share)

    async def run(self, work: Callable[[], T], *, caller: str) -> T:
        """What `work` gives, when `caller` has had its turn.

        Who gives up while it waits costs nothing; work that has begun cannot be interrupted, and
        has its thread until it ends.
        """
        await self._turns.take(caller)
        working = asyncio.get_running_loop().run_in_executor(self._executor, work)
        working.add_done_callback(lambda _: self._turns.give(caller))
        return await asyncio.shield(working)

    def close(self) -> None:
        """Begin nothing more, and wait for nothing."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class _Worker:
    """A process that runs `service.codecs.worker`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        self._process, self._jobs, self._answers = process, process.stdin, process.stdout
        self.retirement: asyncio.TimerHandle  # while it has nothing to do

    @classmethod
    async def start(cls) -> _Worker:
        path = os.pathsep.join(part for part in sys.path if part)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            WORKER,
            str(MAX_BYTES),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=PIPE_BYTES,
            start_new_session=True,  # Ctrl-C is for the service, which drains first
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def ask(self, job: Job) -> tuple[dict[str, Any], bytes]:
        buffers: list[pickle.PickleBuffer] = []
        first = pickle.dumps(job, pickle.HIGHEST_PROTOCOL, buffer_callback=buffers.append)
        parts = [memoryview(first), *(buffer.raw() for buffer in buffers)]
        self._jobs.write(b"".join(map(LENGTH.pack, (len(parts), *map(len, parts)))))
        for part in parts:  # piece by piece: a copy of megabytes would hold the event loop up
            for start in range(0, len(part), PIECE_BYTES):
                self._jobs.write(part[start : start + PIECE_BYTES])
                await self._jobs.drain()
        return json.loads(await self._part(MAX_SAID_BYTES)), await self._part(MAX_BYTES)

    async def _part(self, most: int) -> bytes:
        (length,) = LENGTH.unpack(await self._answers.readexactly(LENGTH.size))
        if length > most:
            raise ConnectionError("the decoder says what no decoder would")
        return await self._answers.readexactly(length)

    def end(self) -> None:
        if self.is_alive:
            self._process.kill()

    async def kill(self) -> None:
        self.end()
        await self._process.wait()


@asynccontextmanager
async def _until(deadline: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise errors.DeadlineExceeded("the deadline passed while images were decoded") from None


def _error(said: dict[str, Any]) -> IafvaeError:
    """What a worker says is wrong."""
    kind = getattr(errors, str(said["error"]), None)
    known = isinstance(kind, type) and issubclass(kind, IafvaeError)
    return (kind if known else errors.UndecodableImage)(str(said["detail"]))  # type: ignore[misc]


def _fitted(said: dict[str, Any], pixels: bytes) -> Fitted:
    images = np.frombuffer(pixels, np.uint8).reshape(said["shape"])
    return Fitted(
        images, np.array(said["altered"], np.bool_), tuple(said["notes"]), said["decoded"]
    )


def _images(said: dict[str, Any], data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Options, and the files that follow each other in `data`."""
    ends = [0, *accumulate(said["lengths"])]
    return dict(said["fields"]), [data[start:end] for start, end in pairwise(ends)]


def _joined(parts: Sequence[Fitted]) -> Fitted:
    return Fitted(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.altered for part in parts]),
        tuple(note for part in parts for note in part.notes),
        sum(part.decoded for part in parts),
    )
