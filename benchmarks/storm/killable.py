"""`iafvae serve` with a fault planted: each SIGUSR1 kills one engine thread, wherever it is.

    python benchmarks/storm/killable.py

Nothing of the service is changed for it: the thread meets an exception that nobody expects there,
between two batches or within one. Settings are the `IAFVAE_*` variables.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from itertools import count
from pathlib import Path
from types import FrameType

# Run as a file, this folder comes first on the path, where other programs' names could hide ours.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from service.cli.main import main  # noqa: E402

turn = count()


def kill_engine_thread(_signal: int, _frame: FrameType | None) -> None:
    """Raise SystemExit in one of them, in turn."""
    alive = [thread for thread in threading.enumerate() if thread.name.startswith("engine-")]
    if alive:
        victim = ctypes.c_ulong(alive[next(turn) % len(alive)].ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(victim, ctypes.py_object(SystemExit))


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, kill_engine_thread)
    sys.argv[1:] = ["serve"]
    main()
