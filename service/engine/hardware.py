"""What this process may use: cores, and CUDA's libraries. Nothing here imports a backend."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from pathlib import Path

__all__ = [
    "available_cores",
    "cuda_driver_problem",
    "give_memory_back",
    "library_problem",
    "tune_allocator",
]

CGROUP = Path("/sys/fs/cgroup")
WINDOWS = sys.platform == "win32"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT_BYTES, MAPPED_BYTES = 2**24, 2**22


def available_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use: its affinity, and its container's CPU quota rounded up."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def _quota(cgroup: Path) -> float | None:
    """Cores that version 2 of cgroups allows, else version 1, whose -1 is no bound."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            quota, period = map(int, " ".join((cgroup / f).read_text() for f in files).split())
            if quota > 0:
                return quota / period
        except (OSError, ValueError, ZeroDivisionError):  # absent, "max", or no number
            continue
    return None


def give_memory_back() -> None:
    """Hand what was freed to the system; glibc keeps much of it. Elsewhere nothing is done."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if not WINDOWS else None
    if trim is not None:
        trim(0)


def tune_allocator() -> None:
    """Let glibc keep up to 16 MiB that was freed in each thread's arena, and give blocks of 4 MiB
    and more back at once. Elsewhere nothing is done.

    Where neither is said, both follow the largest block that was ever freed, up to 64 and 32 MiB,
    and requests' bodies stay; where one is said, the other stays at 128 KiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if not WINDOWS else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def cuda_driver_problem(device: int = 0, cuda: str = "0.0") -> str | None:
    """Why GPU number `device` cannot be used by libraries of the version `cuda`, or None."""
    name = "nvcuda.dll" if WINDOWS else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"the NVIDIA driver ({name}) is not installed"
    if (status := driver.cuInit(0)) != 0:
        return f"the NVIDIA driver finds no usable device (cuInit gives {status})"
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    has = divmod(version.value // 10, 100)
    if has < tuple(map(int, f"{cuda}.0".split(".")[:2])):
        return (
            f"the NVIDIA driver knows CUDA up to {has[0]}.{has[1]} and {cuda} is needed: install a"
            " newer driver"
        )
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value <= device:
        return f"the NVIDIA driver finds {count.value} devices, and none of number {device}"
    return None


def library_problem(cuda_major: str) -> str | None:
    """Why CUDA's own libraries cannot be loaded, or None where they can."""
    linux = [f"libcudart.so.{cuda_major}", f"libcublasLt.so.{cuda_major}", "libcudnn.so.9"]
    names = [f"cublasLt64_{cuda_major}.dll", "cudnn64_9.dll"] if WINDOWS else linux
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            return f"{name} cannot be loaded"
    return None
