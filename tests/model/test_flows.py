"""Every flow against the autograd Jacobian in float64, and its masks by exact zeros."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model.config import DiagonalPosterior, IafPosterior
from model.flows import FlowChain, IafStep, Made, build_flow
from model.layers import data_dependent_init

DIM, CONTEXT, BATCH = 5, 7, 4

# A new posterior is tested by adding one line.
FLOWS: dict[str, Callable[[], FlowChain]] = {
    "diagonal": lambda: build_flow(DiagonalPosterior(), DIM, CONTEXT),
    "iaf-linear": lambda: build_flow(IafPosterior(steps=1, hidden=()), DIM, CONTEXT),
    "iaf-1x1-layer": lambda: build_flow(IafPosterior(steps=1, hidden=(11,)), DIM, CONTEXT),
    "iaf-2x2-layers": lambda: build_flow(IafPosterior(steps=2, hidden=(16, 13)), DIM, CONTEXT),
    "iaf-narrow": lambda: build_flow(IafPosterior(steps=2, hidden=(2, 3)), DIM, CONTEXT),
    "iaf-3-same-order": lambda: build_flow(
        IafPosterior(steps=3, hidden=(9, 9), reverse=False), DIM, CONTEXT
    ),
}


def awake(module: nn.Module) -> nn.Module:
    """Give every parameter a value that matters: fresh gains and biases hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module.double()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64)
    context = torch.randn(BATCH, CONTEXT, generator=generator, dtype=torch.float64)
    return z, context


def jacobians(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """d function / d z of each row, `[B, D, D]`."""
    full = torch.autograd.functional.jacobian(function, z)
    return torch.stack([full[i, :, i] for i in range(len(z))])


@pytest.mark.parametrize("name", FLOWS)
def test_log_det_equals_the_jacobians(name: str) -> None:
    flow = awake(FLOWS[name]())
    z, context = inputs()
    _, log_det = flow(z, context)
    expected = torch.linalg.slogdet(jacobians(lambda t: flow(t, context)[0], z)).logabsdet
    assert log_det.shape == (BATCH, 1)
    torch.testing.assert_close(log_det.sum(dim=1), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FLOWS)
def test_inverse_undoes_forward(name: str) -> None:
    flow = awake(FLOWS[name]())
    z, context = inputs()
    z_next, _ = flow(z, context)
    torch.testing.assert_close(flow.inverse(z_next, context), z, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", FLOWS)
def test_rows_do_not_touch_each_other(name: str) -> None:
    flow = awake(FLOWS[name]())
    z, context = inputs()
    full = torch.autograd.functional.jacobian(lambda t: flow(t, context)[0], z)
    for i in range(BATCH):
        for j in range(BATCH):
            assert i == j or not full[i, :, j].any()


@pytest.mark.parametrize("name", FLOWS)
def test_every_parameter_has_a_gradient(name: str) -> None:
    flow = awake(FLOWS[name]())
    z, context = inputs()
    z_next, log_det = flow(z, context)
    if not list(flow.parameters()):
        assert name == "diagonal"
        return
    (z_next.square().sum() + log_det.sum()).backward()
    without = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("hidden", [(), (11,), (16, 13), (2, 3)])
def test_made_is_autoregressive_by_exact_zeros(hidden: tuple[int, ...], reverse: bool) -> None:
    made = awake(Made(DIM, CONTEXT, hidden, reverse=reverse, gate_bias=1.5))
    z, context = inputs()
    for head in (0, 1):
        jacobian = jacobians(lambda t, head=head: made(t, context)[head], z)
        forbidden = torch.ones(DIM, DIM, dtype=torch.bool)
        forbidden = forbidden.tril() if reverse else forbidden.triu()
        assert not jacobian[:, forbidden].any()
        if min(hidden, default=DIM) >= DIM:  # wide enough: every allowed dependence exists
            assert jacobian[:, ~forbidden].all()


@pytest.mark.parametrize("hidden", [(), (16, 13), (2, 3)])
def test_every_element_reads_the_context(hidden: tuple[int, ...]) -> None:
    made = awake(Made(DIM, CONTEXT, hidden, reverse=False, gate_bias=1.5))
    z, context = inputs()
    full = torch.autograd.functional.jacobian(lambda c: made(z, c)[0], context)
    assert all(full[i, :, i].any(dim=1).all() for i in range(BATCH))


def test_step_is_the_papers_gated_update() -> None:
    step = IafStep(awake(Made(DIM, CONTEXT, (8,), reverse=False, gate_bias=1.5)))
    z, context = inputs()
    m, s = step.made(z, context)
    sigma = 1 / (1 + torch.exp(-s))
    z_next, log_det = step(z, context)
    torch.testing.assert_close(z_next, sigma * z + (1 - sigma) * m)
    torch.testing.assert_close(log_det[:, 0], torch.log(sigma).sum(dim=1))


def test_gate_bias_survives_data_dependent_initialisation() -> None:
    flow = build_flow(IafPosterior(steps=2, hidden=(16, 16), gate_bias=1.7), DIM, CONTEXT)
    z, context = (t.float() for t in inputs())
    with torch.no_grad(), data_dependent_init(flow):
        flow(z.repeat(50, 1), context.repeat(50, 1))
    for step in flow.steps:
        torch.testing.assert_close(step.made.s.bias, torch.full((DIM,), 1.7))
        _, s = step.made(z, context)
        assert (s - 1.7).abs().max() < 1.0  # each step starts by changing z only slightly


def test_consecutive_steps_reverse_the_order() -> None:
    flow = awake(build_flow(IafPosterior(steps=2, hidden=(16, 16)), DIM, CONTEXT))
    z, context = inputs()
    first, second = (jacobians(lambda t, s=s: s(t, context)[0], z) for s in flow.steps)
    assert not first.triu(diagonal=1).any()
    assert not second.tril(diagonal=-1).any()


def test_linear_iaf_is_a_full_covariance_gaussian() -> None:
    """Paper, Appendix A: one linear step turns N(mu, diag) into N(., L diag L^T)."""
    made = Made(DIM, CONTEXT, (), reverse=False, gate_bias=1.5)
    awake(made)
    made.s.g.data.zero_()  # a constant scale for each element: s no longer depends on z
    step = IafStep(made)
    z, context = inputs()
    jacobian = jacobians(lambda t: step(t, context)[0], z)
    other = jacobians(lambda t: step(t, context)[0], z + 3.0)
    torch.testing.assert_close(jacobian, other)  # affine: the image of a Gaussian is a Gaussian
    covariance = jacobian @ jacobian.mT
    strictly_lower = torch.ones(DIM, DIM).tril(-1).bool()
    assert covariance[:, strictly_lower].abs().min() > 1e-4
