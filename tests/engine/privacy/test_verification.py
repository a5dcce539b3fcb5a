"""`verify` lets no model through whose records mix, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.tiny_models import VOCABULARY, build, with_lora
from taciturn.engine.model.loss import CausalLmLoss, weighted_cross_entropy
from taciturn.engine.privacy.per_example import per_example_gradients
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.privacy.verification import brute_force_gradients, public_batch, verify
from taciturn.errors import UnsupportedLayerError

D = 8
BATCH = public_batch(VOCABULARY)


class Toy(nn.Module):
    """Embedding, a middle part that is under test, linear head; a loss per sequence."""

    def __init__(self, middle: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed = nn.Embedding(VOCABULARY, D)
            self.inner = nn.Linear(D, D)
            self.head = nn.Linear(D, VOCABULARY)
        self.layers = nn.ModuleList(layers)
        self.middle = middle

    def forward(self, batch: UnitBatch) -> Tensor:
        x_BTD = self.embed(batch.input_ids_BT)
        logits_BTV = self.head(self.middle(self, x_BTD))
        return weighted_cross_entropy(logits_BTV, batch.input_ids_BT, batch.loss_weights_BT)


class Einsum(nn.Module):
    """Trainable, and not among the layers that anyone could know."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(D))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.einsum("btd,de->bte", x_BTD, self.weight)


class Remembering(nn.Module):
    """Adds a running mean of what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(D))

    def forward(self, x_BTD: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x_BTD.detach().mean((0, 1))
        return x_BTD


class Hidden(nn.Module):
    """Uses a parameter behind the back of the module tree as well."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.behind = [linear.weight]

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.linear(x_BTD, self.behind[0])


class SwappedGradient(torch.autograd.Function):
    """A backward pass that hands each sequence its neighbour's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0].roll(1, 0)


def inner(toy: Toy, x: Tensor) -> Tensor:
    return toy.inner(x).tanh()


def batch_norm(toy: Toy, x: Tensor) -> Tensor:
    return toy.layers[0](inner(toy, x).transpose(1, 2)).transpose(1, 2)


def square_only(toy: Toy, x: Tensor) -> Tensor:
    return toy.inner(x.transpose(0, 1)).tanh().transpose(0, 1)


def row_shuffled(toy: Toy, x: Tensor) -> Tensor:
    rows = x.reshape(-1, D)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    return toy.inner(rows[order])[order.argsort()].view_as(x).tanh()


def rows_time_first(toy: Toy, x: Tensor) -> Tensor:
    b, t, _ = x.shape
    rows = toy.inner(x.transpose(0, 1).reshape(b * t, D))
    return rows.view(t, b, D).transpose(0, 1).tanh()


def looks_ahead(toy: Toy, x: Tensor) -> Tensor:
    return inner(toy, x) + x.mean(1, keepdim=True)


REFUSED: dict[str, Callable[[], Toy]] = {
    "batch norm with weights": lambda: Toy(batch_norm, nn.BatchNorm1d(D)),
    "batch norm without weights": lambda: Toy(batch_norm, nn.BatchNorm1d(D, affine=False)),
    "batch norm without statistics": lambda: Toy(
        batch_norm, nn.BatchNorm1d(D, affine=False, track_running_stats=False)
    ),
    "mean over the batch": lambda: Toy(lambda toy, x: inner(toy, x) + 0.1 * x.mean(0)),
    "largest of the batch": lambda: Toy(lambda toy, x: inner(toy, x) / x.abs().max()),
    "average over padding": lambda: Toy(looks_ahead),
    "depends on padded length": lambda: Toy(lambda toy, x: inner(toy, x) * x.shape[1]),
    "depends on batch size": lambda: Toy(lambda toy, x: inner(toy, x) / len(x)),
    "einsum": lambda: Toy(lambda toy, x: toy.layers[0](inner(toy, x)), Einsum()),
    "running mean": lambda: Toy(lambda toy, x: toy.layers[0](inner(toy, x)), Remembering()),
    "dropout": lambda: Toy(lambda toy, x: F.dropout(inner(toy, x), 0.5)),
    "parameter never used": lambda: Toy(lambda toy, x: x.tanh()),
    "parameter detached": lambda: Toy(
        lambda toy, x: F.linear(x, toy.inner.weight.detach()) + toy.inner.bias
    ),
    "parameter changed in place": lambda: Toy(
        lambda toy, x: F.linear(x, toy.inner.weight.mul_(0.99), toy.inner.bias)
    ),
    "time first": lambda: Toy(square_only),
    "rows time first": lambda: Toy(rows_time_first),
    "rows shuffled": lambda: Toy(row_shuffled),
    "gradients swapped": lambda: Toy(lambda toy, x: SwappedGradient.apply(inner(toy, x))),
    "loss that is not finite": lambda: Toy(lambda toy, x: inner(toy, x) / 0.0),
    "no gradient at all": lambda: Toy(lambda toy, x: inner(toy, x).detach()).requires_grad_(False),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    toy = REFUSED[name]()
    before = {key: value.clone() for key, value in toy.state_dict().items() if "mean" not in key}
    with pytest.raises(UnsupportedLayerError):
        verify(toy, BATCH)
    if name != "parameter changed in place":
        for key, value in before.items():
            if "running" not in key and "num_batches" not in key:
                assert torch.equal(toy.state_dict()[key], value), key


def test_parameter_behind_the_module_tree_is_found() -> None:
    """The lifted copy sees only half of what this weight does."""
    toy = Toy(lambda toy, x: toy.layers[0](inner(toy, x)))
    toy.layers.append(Hidden(toy.inner))
    with pytest.raises(UnsupportedLayerError, match=r"inner\.weight"):
        verify(toy, BATCH)


def test_accepted() -> None:
    verify(Toy(inner), BATCH)
    verify(Toy(batch_norm, nn.BatchNorm1d(D, affine=False)).eval(), BATCH)


def test_time_first_fits_by_chance_in_a_square_batch() -> None:
    """Why a batch with as many tokens as sequences proves nothing."""
    square = UnitBatch(
        BATCH.input_ids_BT[:, :4], BATCH.loss_weights_BT[:, :4], BATCH.unit_of_B, BATCH.n_units
    )
    wrong = per_example_gradients(Toy(square_only), square).values["inner.weight"]
    truth = brute_force_gradients(Toy(square_only), square)
    assert not torch.allclose(wrong, torch.stack([each["inner.weight"] for each in truth]))
    with pytest.raises(ValueError, match="4 sequences of 4 tokens"):
        verify(Toy(inner), square)


@pytest.mark.parametrize(
    ("rows", "tokens"), [([0, 1], 13), ([0, 1, 2, 3], 12), ([0, 1, 2, 3], 2), ([0, 3, 3], 13)]
)
def test_batch_that_proves_nothing_is_refused(rows: list[int], tokens: int) -> None:
    batch = UnitBatch(
        BATCH.input_ids_BT[rows, :tokens],
        BATCH.loss_weights_BT[rows, :tokens],
        BATCH.unit_of_B[rows],
        BATCH.n_units,
    )
    with pytest.raises(ValueError, match="public_batch"):
        verify(Toy(inner), batch)


def test_weights_are_restored_bit_for_bit() -> None:
    loss = CausalLmLoss(with_lora(build("llama-tied"), init_lora_weights=True))
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    state = torch.random.get_rng_state()
    verify(loss, BATCH)
    assert torch.equal(torch.random.get_rng_state(), state), "the user's random state is theirs"
    for name, value in loss.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_weights_are_restored_after_an_error() -> None:
    toy = Toy(lambda toy, x: 1 / 0)
    before = toy.inner.weight.detach().clone()
    with pytest.raises(ZeroDivisionError):
        verify(toy, BATCH)
    assert torch.equal(toy.inner.weight, before)


def test_zero_matrix_of_lora_hides_nothing() -> None:
    """At LoRA's start B is zero, and A's gradient with it: a wrong A would look right."""
    model = with_lora(build("llama"), init_lora_weights=True)
    wrong = next(m for n, m in model.named_modules() if n.endswith("0.self_attn.q_proj.lora_A"))
    wrong["default"].register_forward_hook(lambda m, args, out: SwappedGradient.apply(out))
    gradients = per_example_gradients(CausalLmLoss(model), BATCH)
    assert all(not value.any() for name, value in gradients.values.items() if "lora_A" in name)
    with pytest.raises(UnsupportedLayerError, match="lora_A"):
        verify(CausalLmLoss(model), BATCH)


def test_tied_head_that_forgets_the_embedding_is_found() -> None:
    """One of the two uses of a tied weight overwrites the other."""

    class Forgetful(CausalLmLoss):
        def forward(self, batch: UnitBatch) -> Tensor:
            model: Any = self.model
            embedded = model.get_input_embeddings()(batch.input_ids_BT).detach()
            logits = model(inputs_embeds=embedded, use_cache=False).logits
            return weighted_cross_entropy(logits, batch.input_ids_BT, batch.loss_weights_BT)

    loss = CausalLmLoss(build("llama-tied"))
    name = "model.model.embed_tokens.weight"
    right = per_example_gradients(loss, BATCH).values[name]
    forgetful = per_example_gradients(Forgetful(loss.model), BATCH).values[name]
    assert not torch.allclose(right, forgetful, rtol=1e-2)


def test_public_batch_is_the_same_for_everyone() -> None:
    torch.manual_seed(123)
    again = public_batch(VOCABULARY)
    assert torch.equal(again.input_ids_BT, BATCH.input_ids_BT)
    sequences, tokens = again.input_ids_BT.shape
    assert tokens % sequences
    assert sequences % tokens
    lengths = (again.loss_weights_BT != 0).sum(1).tolist()
    assert len(set(lengths)) == sequences
    torch.testing.assert_close(again.loss_weights_BT.sum(1), torch.ones(sequences))
    assert again.unit_of_B.unique().tolist() == [0, 1, 2]
    assert int(again.input_ids_BT.max()) < VOCABULARY
