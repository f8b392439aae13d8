"""The fits of the flow benchmark: exact densities, gaps that are divergences, honest tables."""

from __future__ import annotations

import argparse
import json
import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from benchmarks import flows
from benchmarks.flow_fits import Linear, Posterior, candidates, fit, gap, parameters_of
from benchmarks.flows import gap_a_latent, markdown, plot

CANDIDATES = candidates(12)
SHAPE = (8, 1, 1)


def best_diagonal(target: Linear) -> float:
    """KL(q || p) in nats of the best diagonal Gaussian q, variances 1 / precision_ii."""
    precision = target.precision()
    q, p = (
        MultivariateNormal(torch.zeros(len(matrix)).double(), precision_matrix=matrix)
        for matrix in (precision.diagonal().diag(), precision)
    )
    return kl_divergence(q, p).item()


@pytest.mark.parametrize("name", CANDIDATES)
def test_log_q_is_the_density_of_z(name: str):
    """Against the Jacobian of eps -> z by autograd, which knows nothing of the flow's own."""
    torch.manual_seed(0)
    shape = (4, 2, 2) if name.startswith("conv") else SHAPE
    posterior = Posterior(CANDIDATES[name], shape).double()
    eps = torch.randn(math.prod(shape), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda e: posterior(e[None])[0][0], eps)
    log_p_eps = torch.distributions.Normal(0.0, 1.0).log_prob(eps).sum()
    expected = log_p_eps - torch.linalg.slogdet(jacobian).logabsdet
    _, log_q = posterior(eps[None])
    assert log_q.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    assert parameters_of(CANDIDATES[name], shape) == sum(
        p.numel() for p in posterior.flow.parameters()
    )


def test_the_gap_is_the_divergence():
    """A diagonal Gaussian with the best variances: the closed form, within four deviations."""
    target = Linear(32)
    posterior = Posterior(CANDIDATES["diagonal"], target.shape)
    with torch.no_grad():
        posterior.log_scale.copy_(-0.5 * target.precision().diagonal().log())
    eps = torch.randn(8192, 32, generator=torch.Generator().manual_seed(0))
    value, error = gap(posterior, target, eps, 512)
    assert error < 0.2
    assert abs(value - best_diagonal(target)) < 4 * error


def test_a_fit_finds_the_best():
    target = Linear(8)
    torch.manual_seed(0)
    posterior = Posterior(CANDIDATES["diagonal"], target.shape)
    found = fit(posterior, target, 0.0, rows=128, rate=0.05, least_steps=300)
    assert found["step"] == 300
    excess = found["gap_nats"] - best_diagonal(target)
    assert abs(excess) < 4 * found["standard_error_nats"] + 0.02


def test_the_full_covariance_closes_the_gap_that_a_diagonal_leaves():
    target = Linear(8)
    torch.manual_seed(0)
    posterior = Posterior(CANDIDATES["linear IAF"], target.shape)
    last = fit(posterior, target, 0.0, rows=128, rate=0.02, least_steps=400)
    assert last["gap_nats"] > -4 * last["standard_error_nats"]
    assert last["gap_nats"] < 0.05 * best_diagonal(target)


def _row(posterior: str, dim: int, gap_nats: float | None) -> dict:
    row = {"target": "linear", "dim": dim, "posterior": posterior, "run": gap_nats is not None}
    row |= {"parameters": 33_500_000, "seconds": 3.0}
    return row if gap_nats is None else {**row, "cost_ms": 1.5, "gap_nats": gap_nats}


ROWS = [
    _row("IAF, 1 step", 32, 16.0),
    _row("planar, 64 steps", 32, 48.0),
    _row("IAF, 1 step", 64, 64.0),
    _row("planar, 64 steps", 64, None),
]


def test_gaps_are_a_latent():
    assert gap_a_latent(ROWS[0]) == 0.5
    assert math.isnan(gap_a_latent(ROWS[3]))


def test_the_table_compares_with_the_best_iaf_and_says_what_was_not_run(tmp_path):
    text = markdown(ROWS)
    assert "34M weights" in text
    (behind,) = [line for line in text.splitlines() if line.startswith("| best planar")]
    assert [cell.strip() for cell in behind.split("|")[2:4]] == ["3.00", "nan"]
    plot(ROWS, tmp_path / "flows.png")
    assert (tmp_path / "flows.png").read_bytes()[:4] == b"\x89PNG"


def test_fits_that_are_not_asked_for_stay_and_those_of_other_machines_are_made_anew(
    tmp_path, monkeypatch
):
    made = []
    figures = {"cost_ms": 1.0, "gap_nats": 1.0, "step": 1}
    monkeypatch.setattr(flows, "measure", lambda row, _: made.append(row.key) or dict(figures))
    asked = {"out": tmp_path, "targets": ["linear"], "posteriors": ["diagonal"], "width": 8}
    asked |= {"most_parameters": 10**9, "budget_minutes": 1.0}
    for dim in (8, 12, 8):
        found = flows.results(argparse.Namespace(**asked, dims=[dim]))
        assert list(found["rows"]) == [f"linear/{dim}/diagonal"]
    assert made == ["linear/8/diagonal", "linear/12/diagonal"]
    path = tmp_path / flows.RESULTS
    content = json.loads(path.read_text())
    assert set(content["rows"]) == set(made)
    content["rows"][made[0]]["machine"] = "another"
    path.write_text(json.dumps(content))
    flows.results(argparse.Namespace(**asked, dims=[8]))
    assert made[2:] == ["linear/8/diagonal"]
