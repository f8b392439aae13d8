"""Two processes over Gloo take the steps of one with the same batch; a lost one is noticed."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.config import ConfigError
from model.objective import ElboTerms, free_bits_objective
from training.config import Runtime
from training.errors import TrainingError
from training.fit.device import choose_device, prepare
from training.fit.distributed import PeerError, World, joined, size_from

HERE = Path(__file__).parent
WORKER = HERE / "ddp_worker.py"
# Sums over a batch are rounded in another order: float32 keeps seven digits of a loss. A weight
# moves by 0.002 a step, in a direction that a gradient near zero leaves open.
LOSS_RTOL = 1e-5
WEIGHT_ATOL = 2e-5


def worker():
    spec = importlib.util.spec_from_file_location("ddp_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def place(rank, size, port):
    """The environment that torchrun gives a process."""
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE.parents[2]),
    }


def together(command, size=2, timeout=100):
    """Run a command in several processes; gives (return code, output) of each."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            env=place(rank, size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(process.returncode, text) for process, text in zip(processes, outputs, strict=True)]


def results(folder, rank):
    tensors = load_file(folder / f"{rank}.safetensors")
    return json.loads((folder / f"{rank}.json").read_text()), tensors


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes found: (JSON, tensors) by rank."""
    out = tmp_path_factory.mktemp("two")
    for code, text in together([str(WORKER), str(out), "all"]):
        assert code == 0, text
    return [results(out, rank) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one():
    """The same steps in one process, here."""
    module = worker()
    return {name: module.train(*case, World()) for name, case in module.CASES.items()}


def assert_same_run(mine, tensors, name, alone):
    """Figures and weights of one of two processes against those of one alone."""
    assert np.allclose(mine["figures"], alone["figures"], rtol=LOSS_RTOL)
    for key, value in alone["validation"].items():
        assert mine["validation"][key] == pytest.approx(value, rel=1e-4), key
    for part, tolerance in (("start", 0.0), ("weights", WEIGHT_ATOL), ("average", WEIGHT_ATOL)):
        for key, value in alone[part].items():
            found = tensors[f"{name}|{part}|{key}"]
            torch.testing.assert_close(found, value, rtol=0, atol=tolerance, msg=f"{part} {key}")


@pytest.mark.parametrize("name", sorted(worker().CASES))
def test_two_processes_take_the_steps_of_one(two, one, name):
    """Losses, norms, validation, data-dependent initialisation, weights and their average."""
    for found, tensors in two:
        assert_same_run(found["cases"][name], tensors, name, one[name])
    (first, weights), (second, others) = two
    assert first["cases"][name] == second["cases"][name]  # to the last bit: they decide alike
    mine = [key for key in weights if key.startswith(f"{name}|")]
    assert all(torch.equal(weights[key], others[key]) for key in mine)


def test_micro_batches_are_the_whole_batch_only_without_free_bits(one):
    module = worker()
    whole = module.train(module.run_of(module.CONV), module.EAGER, World())
    divided = one["conv, micro-batches"]
    assert np.allclose(whole["figures"], divided["figures"], rtol=LOSS_RTOL)
    for key, value in whole["weights"].items():
        torch.testing.assert_close(divided["weights"][key], value, rtol=0, atol=WEIGHT_ATOL)
    # With free bits it is another objective, and two processes must not make the same mistake.
    free, own_means = one["conv, free bits"], one["conv, micro-batches, free bits"]
    apart = np.abs(np.array(free["figures"]) / own_means["figures"] - 1)[:, 0]
    assert apart.max() > 100 * LOSS_RTOL


def test_a_figure_that_is_not_finite_in_one_process_skips_the_step_in_all(two):
    assert [found["skips"] for found, _ in two] == [[True, True, False, True]] * 2


def test_the_wish_of_one_process_stops_all_at_the_same_step(two):
    """The third step ends an epoch, which is reported before the run stops."""
    assert [found["stops"] for found, _ in two] == [[[3, "epoch"], [3, "SIGTERM"]]] * 2


def test_what_the_first_refuses_all_refuse(two):
    (first, second) = (found["refusals"] for found, _ in two)
    assert first["first's fault"] == "TrainingError: no such directory"
    assert second["first's fault"] == "PeerError: the first process says: no such directory"
    for said in (first, second):
        assert "not the same in every process" in said["other images"]
        assert said["same images"] == ""
        assert "9 images do not divide among 2 processes" in said["odd batch"]
    assert (first["turns"], second["turns"]) == (0, 1)


def test_the_firsts_weights_are_everybodys(two):
    first, second = (found["spread"] for found, _ in two)
    assert first == second == worker().spread(World())


def test_a_resumed_run_of_two_is_the_uninterrupted_one_bit_for_bit(two):
    assert [found["resumed"] for found, _ in two] == [[], []]


@pytest.mark.slow
def test_a_resumed_run_of_three_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    """Three numbers have a sum for each order."""
    for code, text in together([str(WORKER), str(tmp_path), "none"], size=3):
        assert code == 0, text
    assert [results(tmp_path, rank)[0]["resumed"] for rank in range(3)] == [[], [], []]


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_two_compiled_processes_take_the_steps_of_one_in_eager_mode(one, tmp_path):
    for code, text in together([str(WORKER), str(tmp_path), "slow"], timeout=1500):
        assert code == 0, text
    for rank in (0, 1):
        found, tensors = results(tmp_path, rank)
        alone = one["conv, free bits"]
        assert_same_run(found["cases"]["conv, compiled"], tensors, "conv, compiled", alone)


LOST = """
import os, sys, time
import torch
from training.fit.distributed import joined, leave
from training.errors import TrainingError
try:
    with joined(float(sys.argv[2])) as world:
        if world.rank == 1:
            if sys.argv[1] == "dies":
                os._exit(7)
            if sys.argv[1] == "raises":
                raise ValueError("its own fault")
            time.sleep(600)
        with world.peers():
            world.total(torch.ones(2))
except TrainingError as error:
    print(type(error).__name__, error)
    leave(5)
"""


@pytest.mark.parametrize("fault", ["dies", "raises", "hangs"])
def test_a_lost_process_leaves_no_other_waiting(fault):
    """One that is gone is noticed at once, one that is silent after the time that was given."""
    minutes = 0.05 if fault == "hangs" else 10
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOST, fault, str(minutes)],
            env=place(rank, 2, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said, _ = processes[0].communicate(timeout=100)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 5
    assert said.startswith("PeerError lost the other 1 process")
    assert "--timeout-minutes" in said


def test_processes_that_never_come_are_named(monkeypatch):
    for name, value in place(0, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PeerError, match="lost the other 1 process"), joined(0.02):
        pass


def test_the_environment_of_a_launcher_is_checked(monkeypatch):
    assert size_from({}) == 1
    assert size_from({"WORLD_SIZE": "1", "RANK": "0"}) == 1
    with pytest.raises(ConfigError, match="RANK is not set: start the processes with torchrun"):
        size_from({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"})
    with pytest.raises(ConfigError, match="'many', not a number"):
        size_from({"WORLD_SIZE": "many"})
    with pytest.raises(ConfigError, match="WORLD_SIZE is 0"):
        size_from({"WORLD_SIZE": "0"})
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(1.0) as world:
        assert world == World()


def test_rows_are_shared_out_whole_and_once():
    worlds = [World(rank=rank, size=4) for rank in range(4)]
    rows = np.arange(12)
    assert np.array_equal(np.concatenate([rows[world.share(12)] for world in worlds]), rows)
    with pytest.raises(ConfigError, match="13 images do not divide among 4"):
        worlds[0].share(13)


def test_alone_nothing_is_shared():
    world = World()
    values = torch.arange(6.0).view(3, 2)
    assert torch.equal(world.batch_mean(values), values.mean(dim=0))
    assert torch.equal(world.total(values), values)
    assert world.parallel(torch.nn.Linear(1, 1), torch.device("cpu")).__class__ is torch.nn.Linear
    with pytest.raises(RuntimeError, match="connection closed"), world.peers():
        raise RuntimeError("connection closed")  # nobody to be lost: not ours to explain


def test_the_objectives_mean_can_be_anybodys():
    """A minimum of means is no mean of minima: the mean is taken before the clamp."""
    kl = torch.tensor([[0.0, 2.0], [1.0, 4.0]])
    terms = ElboTerms(torch.zeros(2), kl)
    assert free_bits_objective(terms, 0.8).item() == pytest.approx(-(0.8 + 3.0))
    whole = free_bits_objective(terms, 0.8, batch_mean=lambda rows: rows.mean(dim=0) + 1)
    assert whole.item() == pytest.approx(-(1.5 + 4.0))


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    worlds = [World(rank=4 + rank, size=8, local_rank=rank) for rank in range(3)]
    assert choose_device("auto", worlds[1]) == torch.device("cuda", 1)
    assert choose_device("cuda", worlds[0]) == torch.device("cuda", 0)
    assert choose_device("cpu", worlds[2]) == torch.device("cpu")
    assert chosen == [torch.device("cuda", 1), torch.device("cuda", 0)]
    with pytest.raises(TrainingError, match="--nproc-per-node 2"):
        choose_device("cuda", worlds[2])
    with pytest.raises(TrainingError, match="use --device cuda, not cuda:1"):
        choose_device("cuda:1", worlds[0])


def test_cuda_graphs_need_one_gpu_and_one_batch():
    with pytest.raises(TrainingError, match="--cuda-graphs on needs a GPU"):
        prepare(Runtime(device="cpu", cuda_graphs="on"))
    with pytest.raises(ConfigError, match="contradicts --compile off"):
        Runtime(cuda_graphs="on", compile="off")
