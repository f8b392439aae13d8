"""Cores that a container allows, and why there is no GPU."""

from __future__ import annotations

import pytest

from service.engine.hardware import available_cores, cuda_driver_problem, library_problem


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.max": "rubbish"}, None),
        ({}, None),
    ],
)
def test_cores_respect_the_container(tmp_path, monkeypatch, files, limit):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == (limit or 6)


def test_what_is_missing_is_named():
    assert "libcudart.so.0" in (library_problem("0") or "")
    problem = cuda_driver_problem()
    assert problem is None or "driver" in problem
