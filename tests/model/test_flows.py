"""What holds for every posterior's flow: its log-det, inverse, gradients, conditions, precision."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model.config import config_from_dict
from model.flows.flow import FlowChain
from model.layers import WeightNormLayer, fold_weight_norm


def jacobians(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """d function / d z of each row, both flattened: `[B, D, D]`; rows must not mix."""
    full = torch.autograd.functional.jacobian(function, z)
    rows = [full[i].select(z.dim() - 1, i) for i in range(len(z))]
    return torch.stack([row.reshape(z[0].numel(), z[0].numel()) for row in rows])


def test_log_det_equals_the_jacobians(flow_case) -> None:
    flow = flow_case.awake()
    z, h = flow_case.inputs()
    conditions = flow.condition(h)
    _, log_det = flow(z, conditions)
    expected = torch.linalg.slogdet(jacobians(lambda t: flow(t, conditions)[0], z)).logabsdet
    assert log_det.shape == (len(z), flow.parts) == (len(z), flow_case.parts)
    torch.testing.assert_close(log_det.sum(dim=1), expected, rtol=1e-9, atol=1e-9)


def test_log_det_of_each_part_is_its_own_blocks(map_case) -> None:
    """In one order the Jacobian is triangular, and so is each channel's block of it.

    Where orders are reversed there is one part, and its block is the whole.
    """
    flow = map_case.awake()
    z, h = map_case.inputs()
    conditions = flow.condition(h)
    _, log_det = flow(z, conditions)
    parts, pixels = flow.parts, map_case.size // flow.parts
    jacobian = jacobians(lambda t: flow(t, conditions)[0], z)
    blocks = jacobian.view(-1, parts, pixels, parts, pixels).diagonal(dim1=1, dim2=3)
    expected = torch.linalg.slogdet(blocks.movedim(-1, 1)).logabsdet  # [B, F]
    torch.testing.assert_close(log_det, expected, rtol=1e-9, atol=1e-9)


def test_inverse_undoes_forward(flow_case) -> None:
    flow = flow_case.awake()
    z, h = flow_case.inputs()
    conditions = flow.condition(h)
    z_next, _ = flow(z, conditions)
    torch.testing.assert_close(flow.inverse(z_next, conditions), z, rtol=1e-8, atol=1e-8)


def test_rows_do_not_touch_each_other(flow_case) -> None:
    flow = flow_case.awake()
    z, h = flow_case.inputs()
    z_next, log_det = flow(z, flow.condition(h))
    for i in range(len(z)):
        changed_z, changed_h = z.clone(), h.clone()
        changed_z[i] += 1.0
        changed_h[i] -= 1.0
        after, log_det_after = flow(changed_z, flow.condition(changed_h))
        others = torch.arange(len(z)) != i
        torch.testing.assert_close(after[others], z_next[others], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(log_det_after[others], log_det[others], rtol=1e-13, atol=1e-13)
        assert not after[i].equal(z_next[i])


def test_every_parameter_has_a_finite_gradient(flow_case) -> None:
    flow = flow_case.awake()
    z, h = flow_case.inputs()
    h.requires_grad_(h.numel() > 0)
    z_next, log_det = flow(z, flow.condition(h))
    if not list(flow.parameters()):
        assert "diagonal" in flow_case.config.kind
        assert z_next.equal(z)
        return
    (z_next.square().sum() + log_det.sum()).backward()
    without = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters())
    assert h.grad.flatten(2).any(dim=2).all() if flow_case.is_maps else h.grad.all()


def test_a_fresh_flow_moves_z_little(flow_case) -> None:
    flow = flow_case.initialized()
    z, h = (t.float() for t in flow_case.inputs(rows=100))
    h = 0.1 * h if flow_case.is_maps else h
    z_next, log_det = flow(z, flow.condition(h))
    moved = (z_next - z).square().mean().sqrt()
    assert moved < 0.5, f"the root mean square of z' - z is {moved:.2f}"
    assert (log_det.sum(dim=1) / flow_case.size).abs().max() < 1.0  # nats an element


def test_conditions_computed_once_serve_every_row(flow_case) -> None:
    """What `score` does: the image's share is computed once and its rows chosen by owner."""
    flow = flow_case.awake()
    _, h = flow_case.inputs()
    owner = torch.tensor([2, 0, 0, 3, 2, 2, 1])
    z, _ = flow_case.inputs(rows=len(owner))
    once = tuple(condition[owner] for condition in flow.condition(h))
    again = flow.condition(h[owner])
    for a, b in zip(flow(z, once), flow(z, again), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert all(condition.shape[0] == len(h) for condition in flow.condition(h))


def test_folding_changes_no_number(flow_case) -> None:
    flow = flow_case.awake()
    z, h = flow_case.inputs()
    before = flow(z, flow.condition(h))
    fold_weight_norm(flow)
    assert not any(isinstance(module, WeightNormLayer) for module in flow.modules())
    for a, b in zip(flow(z, flow.condition(h)), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_half_precision_networks_leave_z_in_single(flow_case) -> None:
    flow = flow_case.initialized()
    z, h = (t.float() for t in flow_case.inputs(rows=50))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, log_det = flow(z, flow.condition(h.bfloat16()))
    exact, _ = flow(z, flow.condition(h.bfloat16().float()))
    assert rounded.dtype == log_det.dtype == torch.float32
    # The move is rounded (2^-8 of it, a few times over), z itself is not.
    assert (rounded - exact).abs().max() <= 0.04 * (exact - z).abs().max()


def test_configurations_round_trip_through_json(flow_case) -> None:
    config = flow_case.model_config()
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


class _Densities(nn.Module):
    """z' and the log-det as functions of z and h, as the bundle's graphs nest them."""

    def __init__(self, flow: FlowChain) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow(z, self.flow.condition(h))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iaf-2x2-layers", "planar", "conv-iaf"])
def test_compiled_equals_eager(name: str, flow_cases) -> None:
    """As one graph without a break, forward and backward (code generation is torch's own)."""
    case = flow_cases[name]
    eager = _Densities(case.initialized())
    compiled = torch.compile(eager, backend="aot_eager", fullgraph=True)
    z, h = (t.float() for t in case.inputs())
    results = []
    for function in (eager, compiled):
        eager.zero_grad()
        z_next, log_det = function(z.requires_grad_(), h)
        (z_next.square().sum() + log_det.sum()).backward()
        results.append([z_next, log_det, *(p.grad for p in eager.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_density_integrates_to_one(flow_case) -> None:
    """q(z') = N(f^-1(z'); 0, 1) |det df/dz|^-1 over a grid: its sum is one only if all agree."""
    case = flow_case.over(*((1, 1, 2) if flow_case.is_maps else (2,)))
    flow = case.awake(size=0.1)
    u = torch.linspace(-3.3, 3.3, 101, dtype=torch.float64)
    grid = torch.cartesian_prod(1.5 * torch.sinh(u), 1.5 * torch.sinh(u))  # finer in the middle
    weights = torch.cartesian_prod(torch.cosh(u), torch.cosh(u)).prod(dim=1)
    weights = weights * (1.5 * (u[1] - u[0])) ** 2
    h = 0.3 * case.inputs(rows=1)[1]
    conditions = tuple(c.expand(len(grid), *c.shape[1:]) for c in flow.condition(h))
    z = flow.inverse(grid.view(-1, *case.shape), conditions)
    with torch.no_grad():
        _, log_det = flow(z, conditions)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(dim=1)
    total = (weights * torch.exp(log_p - log_det.sum(dim=1))).sum()
    assert abs(total - 1) < 1e-3
