"""Signals as wishes and as interruptions, in a process of their own, for they may end it."""

from __future__ import annotations

import signal
import subprocess
import sys
import warnings

import pytest

from training.fit.signals import stoppable

START = """
import os, signal, sys
from training.fit.signals import Interrupts, signal_name, stoppable
def send(name):
    os.kill(os.getpid(), signal.Signals[name])
"""
SWALLOWED = """
with stoppable():
    try:
        send("SIGINT")
    except BaseException:
        print("swallowed", flush=True)
    send("SIGTERM")
print("never")
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interruption_says_which_signal_it_was(name):
    done = run(f"""
try:
    with stoppable():
        send("{name}")
except KeyboardInterrupt as stop:
    print(signal_name(stop))
""")
    assert done.stdout.split() == [name]


def test_what_somebody_caught_the_next_signal_ends():
    done = run(SWALLOWED)
    assert done.stdout.split() == ["swallowed"]
    assert done.returncode == -15


@pytest.mark.parametrize("second", ["SIGINT", "SIGTERM"])
def test_the_first_is_a_wish_and_the_second_stops(second):
    done = run(f"""
interrupts = Interrupts()
with stoppable():
    try:
        with interrupts.watched():
            send("SIGTERM")
            print(interrupts.reason)
            send("{second}")
            print("never")
    except KeyboardInterrupt as stop:
        print(signal_name(stop))
""")
    assert done.stdout.split() == ["SIGTERM", second]
    assert "once more stops at once" in done.stderr


def test_where_nothing_is_to_be_saved_the_first_stops():
    done = run("""
step = 0
interrupts = Interrupts(at_once=lambda: step == 0)
try:
    with interrupts.watched():
        send("SIGINT")
except KeyboardInterrupt as stop:
    print(signal_name(stop), interrupts.reason or "none")
step = 1
with interrupts.watched():
    send("SIGINT")
    print(interrupts.reason)
""")
    assert done.stdout.split() == ["SIGINT", "none", "SIGINT"]


def test_what_a_signal_breaks_off_is_no_warning():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(KeyboardInterrupt), stoppable():
            signal.raise_signal(signal.SIGINT)
        warnings.warn("Error detected in MulBackward0. Traceback ...", stacklevel=1)
        assert not said
