"""Each rule gives the operation's value and each sequence's gradient; the rest is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taciturn.engine.privacy.lifted import routed_linear
from taciturn.engine.privacy.per_example import per_example_gradients
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.privacy.verification import public_batch
from taciturn.errors import UnsupportedLayerError

D = 6
VOCABULARY = 17
BATCH = public_batch(VOCABULARY)
B, T = BATCH.input_ids_BT.shape

Use = Callable[["Probe", Tensor, Tensor], Tensor]


class Probe(nn.Module):
    """A loss that uses its parameters in one way: `use(self, activations, ids)`."""

    def __init__(self, use: Use, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.use = use
        self.table = nn.Parameter(random(VOCABULARY, D), requires_grad=False)
        self.frozen = nn.Parameter(random(D, D), requires_grad=False)
        self.column = nn.Parameter(random(D, 1), requires_grad=False)
        self.stack = nn.Parameter(random(3, D, D), requires_grad=False)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(random(*shape)))

    def forward(self, batch: UnitBatch) -> Tensor:
        x_BTD = F.embedding(batch.input_ids_BT, self.table)
        out = self.use(self, x_BTD, batch.input_ids_BT)
        # [B, ..., D] or [B*T, D] to one number per sequence; padded positions do not count.
        out_BTX = out.reshape(*batch.input_ids_BT.shape, -1)
        return (out_BTX.sin().sum(-1) * (batch.loss_weights_BT != 0)).sum(1)


def table(p: Probe, ids: Tensor) -> Tensor:
    return F.embedding(ids, p.w)


USES: dict[str, tuple[Use, dict[str, tuple[int, ...]]]] = {
    "linear": (lambda p, x, ids: F.linear(x, p.w, p.b), {"w": (5, D), "b": (5,)}),
    "linear on rows": (lambda p, x, ids: F.linear(x.view(-1, D), p.w), {"w": (5, D)}),
    "linear on heads": (lambda p, x, ids: F.linear(x.view(*x.shape[:2], 2, 3), p.w), {"w": (4, 3)}),
    "linear, bias alone": (lambda p, x, ids: F.linear(x, p.frozen, p.b), {"b": (D,)}),
    "linear used twice": (lambda p, x, ids: F.linear(F.linear(x, p.w).tanh(), p.w), {"w": (D, D)}),
    "addmm": (
        lambda p, x, ids: torch.addmm(p.b, x.view(-1, D), p.w),
        {"w": (D, 5), "b": (5,)},
    ),
    "addmm, bias alone": (
        lambda p, x, ids: torch.addmm(p.b, x.view(-1, D), p.frozen),
        {"b": (D,)},
    ),
    "addmm, weight alone": (
        lambda p, x, ids: torch.addmm(p.frozen[0], x.view(-1, D), p.w),
        {"w": (D, D)},
    ),
    "matmul": (lambda p, x, ids: x @ p.w, {"w": (D, 5)}),
    "matmul with a transposed weight": (lambda p, x, ids: torch.matmul(x, p.w.T), {"w": (5, D)}),
    "embedding": (lambda p, x, ids: table(p, ids), {"w": (VOCABULARY, D)}),
    "embedding on rows": (lambda p, x, ids: table(p, ids.flatten()), {"w": (VOCABULARY, D)}),
    "embedding of broadcast positions": (
        lambda p, x, ids: x + table(p, torch.arange(ids.shape[1]).unsqueeze(0)),
        {"w": (T, D)},
    ),
    "embedding with a padding row": (
        lambda p, x, ids: F.embedding(ids, p.w, padding_idx=2),
        {"w": (VOCABULARY, D)},
    ),
    "embedding with a padding row counted from the end": (
        lambda p, x, ids: F.embedding(ids.flatten(), p.w, padding_idx=-1),
        {"w": (VOCABULARY, D)},
    ),
    "embedding and head tied": (
        lambda p, x, ids: F.linear(table(p, ids).tanh(), p.w),
        {"w": (VOCABULARY, D)},
    ),
    "layer norm": (lambda p, x, ids: F.layer_norm(x, (D,), p.w, p.b), {"w": (D,), "b": (D,)}),
    "layer norm without bias": (lambda p, x, ids: F.layer_norm(x, (D,), p.w), {"w": (D,)}),
    "rms norm": (lambda p, x, ids: F.rms_norm(x, (D,), p.w), {"w": (D,)}),
    "scale": (lambda p, x, ids: p.w * x, {"w": (D,)}),
    "scale on heads": (
        lambda p, x, ids: x.view(*x.shape[:2], 2, 3).transpose(1, 2) * p.w,
        {"w": (3,)},
    ),
    "scale by one plus w": (lambda p, x, ids: x * (1.0 + p.w.float()).type_as(x), {"w": (D,)}),
    "scale a broadcast input": (lambda p, x, ids: x + x[:1] * p.w, {"w": (D,)}),
    "shift": (lambda p, x, ids: x + p.b, {"b": (D,)}),
    "shift from the left": (lambda p, x, ids: p.b + x, {"b": (D,)}),
    "activations follow a parameter's dtype": (lambda p, x, ids: x.to(p.w) * p.w, {"w": (D,)}),
    "cast": (lambda p, x, ids: F.linear(x.float(), p.w.to(torch.float32)), {"w": (5, D)}),
    "reshaped": (lambda p, x, ids: F.linear(x, p.w.view(5, -1)), {"w": (5 * D,)}),
    "permuted": (lambda p, x, ids: F.linear(x, p.w.permute(1, 0).contiguous()), {"w": (D, 5)}),
    "transposed by negative dimensions": (
        lambda p, x, ids: F.linear(x, p.w.transpose(-2, -1)),
        {"w": (D, 5)},
    ),
    "unbound": (
        lambda p, x, ids: sum(F.linear(x, w) ** k for k, w in enumerate(p.w.unbind(), 1)),
        {"w": (3, 5, D)},
    ),
    "rows of a matrix scaled by constants": (
        lambda p, x, ids: F.linear(x, p.w * p.column),
        {"w": (D, D)},
    ),
    "low-rank update of a frozen weight": (
        lambda p, x, ids: F.linear(x, p.frozen + (p.b @ p.a) * 0.5),
        {"a": (2, D), "b": (D, 2)},
    ),
    "low-rank update of stacked weights": (
        lambda p, x, ids: _through_stack(p, x),
        {"a": (3, 2, D), "b": (3, D, 2)},
    ),
    "rows routed to a matrix": (lambda p, x, ids: _routed(p, x), {"w": (5, D)}),
}


def _through_stack(p: Probe, x_BTD: Tensor) -> Tensor:
    whole = torch.baddbmm(p.stack, p.b, p.a, alpha=0.5)
    tokens = torch.arange(x_BTD.shape[0] * x_BTD.shape[1])
    rows = x_BTD.reshape(-1, D)
    return sum(routed_linear(rows, matrix, tokens).cos() for matrix in whole.unbind())


def _routed(p: Probe, x_BTD: Tensor) -> Tensor:
    rows = x_BTD.reshape(-1, D)
    # A third of the rows, in no order, as top-k routing gives them.
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))[: len(rows) // 3]
    out = torch.zeros(len(rows), 5, dtype=rows.dtype)
    return out.index_add(0, chosen, routed_linear(rows[chosen], p.w, chosen))


@pytest.mark.parametrize("name", USES)
def test_rule_is_exact(name: str) -> None:
    use, shapes = USES[name]
    probe = Probe(use, **shapes)
    gradients = per_example_gradients(probe, BATCH)
    batch_loss = probe(BATCH).detach()
    truth = _brute_force(probe)
    for unit, expected in enumerate(truth):
        of_unit = batch_loss[BATCH.unit_of_B == unit].sum()
        torch.testing.assert_close(gradients.losses_U[unit], of_unit)
        for parameter, value in expected.items():
            assert float(value.norm()) > 0
            tolerance = 1e-5 if name in ("cast", "scale by one plus w") else 1e-12
            actual = gradients.values[parameter][unit]
            torch.testing.assert_close(actual, value, rtol=tolerance, atol=tolerance)


def _brute_force(probe: Probe) -> list[dict[str, Tensor]]:
    """One backward pass per unit over the unit's rows of the whole batch's loss."""
    parameters = {name: each for name, each in probe.named_parameters() if each.requires_grad}
    losses_B = probe(BATCH)
    return [
        dict(
            zip(
                parameters,
                torch.autograd.grad(
                    losses_B[BATCH.unit_of_B == unit].sum(),
                    list(parameters.values()),
                    retain_graph=True,
                ),
                strict=True,
            )
        )
        for unit in range(BATCH.n_units)
    ]


REFUSED: dict[str, tuple[Use, dict[str, tuple[int, ...]]]] = {
    "einsum": (lambda p, x, ids: torch.einsum("btd,de->bte", x, p.w), {"w": (D, D)}),
    "convolution": (
        lambda p, x, ids: F.conv1d(x.transpose(1, 2), p.w, padding=1).transpose(1, 2),
        {"w": (D, D, 3)},
    ),
    "clamp in place": (lambda p, x, ids: F.linear(x, p.w.clamp_(-1, 1)), {"w": (D, D)}),
    "data": (lambda p, x, ids: F.linear(x, p.w.data), {"w": (D, D)}),
    "detach": (lambda p, x, ids: F.linear(x, p.w.detach()), {"w": (D, D)}),
    "norm of the weight": (lambda p, x, ids: F.linear(x, p.w / p.w.norm()), {"w": (D, D)}),
    "concatenation": (lambda p, x, ids: F.linear(x, torch.cat([p.w, p.w])), {"w": (D, D)}),
    "indexing": (lambda p, x, ids: F.linear(x, p.w[0]), {"w": (2, D, D)}),
    "output": (lambda p, x, ids: torch.add(x, p.b, out=torch.empty_like(x)), {"b": (D,)}),
    "scaled addition": (lambda p, x, ids: torch.add(x, p.b, alpha=2.0), {"b": (D,)}),
    "numpy": (lambda p, x, ids: x + torch.from_numpy(p.b.numpy()), {"b": (D,)}),
    "item": (lambda p, x, ids: x * p.b.item(), {"b": (1,)}),
    "scalar parameter": (lambda p, x, ids: x * p.b, {"b": ()}),
    "per-position bias": (lambda p, x, ids: x + p.b, {"b": (T, D)}),
    "two parameters added": (lambda p, x, ids: x + (p.b + p.c), {"b": (D,), "c": (D,)}),
    "vector times a column": (lambda p, x, ids: x @ (p.b * p.column), {"b": (D,)}),
    "two parameters multiplied": (lambda p, x, ids: x * (p.b * p.c), {"b": (D,), "c": (D,)}),
    "matrix from the left": (lambda p, x, ids: p.w @ x.transpose(1, 2), {"w": (D, D)}),
    "parameter as input": (lambda p, x, ids: x + F.linear(p.w, p.frozen), {"w": (D, D)}),
    "parameter normalised": (lambda p, x, ids: x + F.layer_norm(p.b, (D,)), {"b": (D,)}),
    "batch norm": (
        lambda p, x, ids: F.batch_norm(
            x.flatten(0, 1), torch.zeros(D).double(), torch.ones(D).double(), p.w, p.b, True
        ),
        {"w": (D,), "b": (D,)},
    ),
    "embedding with max_norm": (
        lambda p, x, ids: F.embedding(ids, p.w, max_norm=1.0),
        {"w": (VOCABULARY, D)},
    ),
    "embedding with frequencies": (
        lambda p, x, ids: F.embedding(ids, p.w, scale_grad_by_freq=True),
        {"w": (VOCABULARY, D)},
    ),
    "embedding of plain positions": (
        lambda p, x, ids: x + table(p, torch.arange(ids.shape[1])),
        {"w": (T, D)},
    ),
    "time first": (lambda p, x, ids: F.linear(x.transpose(0, 1), p.w), {"w": (D, D)}),
    "rows of one expert": (lambda p, x, ids: F.linear(x.view(-1, D)[::2], p.w), {"w": (D, D)}),
    "bias of one expert": (lambda p, x, ids: x.view(-1, D)[::2] + p.b, {"b": (D,)}),
    "stacked matrices": (lambda p, x, ids: torch.bmm(x, p.w), {"w": (B, D, D)}),
    "low-rank update used at once": (
        lambda p, x, ids: torch.bmm(x, torch.baddbmm(p.stack, p.b, p.a)),
        {"a": (3, 2, D), "b": (3, D, 2)},
    ),
    "low-rank update of a trained weight": (
        lambda p, x, ids: torch.baddbmm(p.w, p.b, p.a),
        {"w": (3, D, D), "a": (3, 2, D), "b": (3, D, 2)},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    use, shapes = REFUSED[name]
    before = {key: value.detach().clone() for key, value in Probe(use, **shapes).named_parameters()}
    probe = Probe(use, **shapes)
    with pytest.raises(UnsupportedLayerError, match=r"'[^']*\b[abcw]\b[^']*'"):
        per_example_gradients(probe, BATCH)
    for key, value in probe.named_parameters():
        assert torch.equal(value, before[key]), "refusing must not change a weight"
