"""Packed rows give what padded rows and brute force give, for every architecture that may pack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from taciturn.engine.model.dropout import disable_dropout
from taciturn.engine.model.experts import use_exact_experts
from taciturn.engine.model.lora import attach
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.model.packed import apart_in_rows
from taciturn.engine.privacy.clipping import clip_and_sum, unit_norms
from taciturn.engine.privacy.factors import FactoredGradients
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.layout import BatchLayout
from taciturn.engine.privacy.packing import Packing, fill_rows
from taciturn.engine.privacy.per_example import per_example_gradients
from taciturn.engine.privacy.types import PerUnitGradients, UnitBatch
from taciturn.engine.privacy.verification import (
    brute_force_gradients,
    packed_public_batch,
    verify,
)
from taciturn.errors import UnsupportedLayerError
from taciturn.planning.plan import AdapterPlan
from tinymodels import CONFIGS, build, random_batch, units_of, with_lora

pytestmark = pytest.mark.filterwarnings("ignore")
# A unit in several rows, a record of one token, one without targets.
LENGTHS = [7, 4, 11, 2, 9, 5, 1, 6]
UNITS = [0, 1, 3, 2, 0, 3, 1, 4]
WIDTH = 16
# ALiBi, or positions and masks of their own making.
PADDED_ONLY = {"opt", "opt-projected", "bloom", "falcon", "falcon-multi-query", "falcon-alibi"} | {
    "mpt"
}
# Norms over each head, with the heads before the tokens.
LORA_ONLY = {"gemma3", "phi", "stablelm-normed"}
CASES = [
    pytest.param(name, method, marks=() if name in ("llama-tied", "gpt2") else pytest.mark.slow)
    for name in CONFIGS
    if name not in PADDED_ONLY
    for method in ("full", "lora")
    if method == "lora" or name not in LORA_ONLY
]
every_case = pytest.mark.parametrize(("name", "method"), CASES)
both_forms = pytest.mark.parametrize("form", [Form.INSTANTIATE, Form.FACTORS, Form.AUTO])


def batch(seed: int = 5) -> UnitBatch:
    made = random_batch(LENGTHS, UNITS, seed=seed, padding=2)
    made.loss_weights_BT[7] = 0
    return made.packed(LENGTHS, WIDTH)


def fitted(name: str, method: str) -> CausalLmLoss:
    model = build(name)
    disable_dropout(model)
    use_exact_experts(model)
    return CausalLmLoss(model if method == "full" else with_lora(model))


def assert_alike(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    """Each unit's gradient, to `tolerance` of that unit's whole gradient."""
    whole_U = torch.stack([g.double().flatten(1).norm(dim=1) for g in other.values()]).norm(dim=0)
    for name, value in one.items():
        error_U = (value - other[name]).double().flatten(1).norm(dim=1)
        assert bool((error_U <= tolerance * whole_U).all()), name


def stacked(truth: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([each[name] for each in truth]) for name in truth[0]}


@every_case
@both_forms
def test_equals_padded_and_brute_force(name: str, method: str, form: Form) -> None:
    loss, packed = fitted(name, method), batch()
    found = per_example_gradients(loss, packed, form)
    padded = per_example_gradients(loss, packed.padded(), form)
    torch.testing.assert_close(found.losses_U, padded.losses_U, rtol=1e-5, atol=1e-6)
    assert_alike(found.dense(), padded.dense(), 1e-5)
    assert_alike(found.dense(), stacked(brute_force_gradients(loss, packed)), 1e-5)
    torch.testing.assert_close(unit_norms(found), unit_norms(padded), rtol=1e-5, atol=1e-9)
    clip = 0.9 * float(unit_norms(found).median())
    ours, theirs = clip_and_sum(found, clip), clip_and_sum(padded, clip)
    assert ours.counts.n_clipped == theirs.counts.n_clipped >= 3
    for key, value in theirs.values.items():
        # Factors are clipped 1e-4 shorter, and which matrices are kept so may differ.
        assert float((ours.values[key] - value).norm()) <= 3e-4 * clip, key


@every_case
def test_checkpointing_changes_nothing(name: str, method: str) -> None:
    loss, packed = fitted(name, method), batch()
    plain = per_example_gradients(loss, packed).dense()
    model: Any = loss.model
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    assert_alike(per_example_gradients(loss, packed).dense(), plain, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_who_may_pack(name: str) -> None:
    assert apart_in_rows(fitted(name, "full").model) == (name not in PADDED_ONLY)
    assert apart_in_rows(fitted(name, "lora").model) == (name not in PADDED_ONLY)


@every_case
def test_verified_before_a_run(name: str, method: str) -> None:
    verify(fitted(name, method), packed_public_batch(61))


@pytest.mark.parametrize("name", ["bloom", "opt", "falcon"])
def test_verification_refuses_a_model_that_mixes_packed_records(name: str) -> None:
    with pytest.raises(UnsupportedLayerError):
        verify(fitted(name, "lora"), packed_public_batch(61))


def test_norms_over_heads_are_refused_by_name() -> None:
    """Padded they are fine; packed, the second axis is not the tokens'."""
    loss = fitted("phi", "full")
    with pytest.raises(UnsupportedLayerError, match=r"q_layernorm.*packed rows"):
        per_example_gradients(loss, batch())


def test_bf16_is_verified() -> None:
    verify(CausalLmLoss(fitted("llama", "full").model.bfloat16()), packed_public_batch(61))


@both_forms
def test_trained_output_adapter(form: Form) -> None:
    """What method="auto" trains: B alone, on the output layer, too."""
    plan = AdapterPlan(method="lora", r=4, alpha=4, head_r=2, fixed_a=True)
    model: Any = attach(build("llama"), plan)
    with torch.no_grad():
        for value in (each for each in model.parameters() if each.requires_grad):
            value.copy_(torch.randn_like(value) * 0.1)
    loss, packed = CausalLmLoss(model), batch()
    found = per_example_gradients(loss, packed, form).dense()
    assert_alike(found, stacked(brute_force_gradients(loss, packed)), 1e-5)


@pytest.mark.parametrize("form", [Form.INSTANTIATE, Form.FACTORS])
def test_neighbours(form: Form) -> None:
    """One unit more or less, in other rows then: the sum moves by at most C."""
    loss, clip = fitted("llama-tied", "full"), 0.1
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        lengths = torch.randint(2, WIDTH, (8,), generator=generator).tolist()
        whole = random_batch(lengths, UNITS, seed=int(torch.randint(99, (1,), generator=generator)))
        dropped = int(torch.randint(5, (1,), generator=generator))
        rest = units_of(whole, [unit for unit in range(5) if unit != dropped])
        kept = [length for length, unit in zip(lengths, UNITS, strict=True) if unit != dropped]
        order = sorted(range(len(kept)), key=lambda row: int(rest.unit_of_B[row]))
        assert order == list(range(len(kept))), "units_of keeps a unit's rows together"
        lengths_of = (rest.loss_weights_BT != 0).sum(1) + 1
        moved = _sum(loss, whole.packed(lengths, WIDTH), form, clip) - _sum(
            loss, rest.packed(lengths_of.tolist(), WIDTH + 4), form, clip
        )
        assert float(moved.norm()) <= clip * (1 + 1e-6)


def _sum(loss: CausalLmLoss, of: UnitBatch, form: Form, clip: float) -> Tensor:
    values = clip_and_sum(per_example_gradients(loss, of, form), clip).values
    return torch.cat([value.flatten() for value in values.values()])


@pytest.mark.parametrize("form", [Form.INSTANTIATE, Form.FACTORS])
def test_nan_of_one_record_stays_its_own(form: Form) -> None:
    """PITFALLS 22: in one row, zero times NaN would carry it to every neighbour."""
    loss, packed = fitted("llama", "full"), batch()
    poison = 60
    assert packed.packing is not None
    ids_BT = packed.input_ids_BT.masked_fill(packed.input_ids_BT == poison, 1)
    ids_BT[3, 0] = poison  # of unit 2
    with torch.no_grad():
        model: Any = loss.model
        model.get_input_embeddings().weight[poison] = float("nan")
    dirty = UnitBatch(ids_BT, packed.loss_weights_BT, packed.unit_of_B, packed.n_units)
    dirty = dirty.packed(LENGTHS, WIDTH)
    with torch.no_grad():
        assert int(loss(dirty).isnan().sum()) > 1, "in packed rows it does spread"
    norms_U = unit_norms(per_example_gradients(loss, dirty, form))
    assert torch.isfinite(norms_U).tolist() == [True, True, False, True, True]


def test_packed_batch_needs_fewer_rows() -> None:
    with pytest.raises(ValueError, match="fewer rows"):
        random_batch([5, 5], [0, 1]).packed([5, 5], 8)


def test_batch_stays_packed_on_another_device() -> None:
    moved = batch().to(torch.device("cpu"))
    assert moved.packing is not None
    assert moved.computed_tokens == moved.packing.input_ids_RL.numel() == 3 * WIDTH


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(20, 50))
def test_every_record_has_a_row_and_rows_are_full_enough(lengths: list[int], width: int) -> None:
    rows = fill_rows(lengths, width)
    assert sorted(record for row in rows for record in row) == list(range(len(lengths)))
    fill = [sum(lengths[record] for record in row) for row in rows]
    assert max(fill) <= width
    # Two rows that are half empty would have been one.
    assert sum(2 * each <= width for each in fill) <= 1


@given(st.lists(st.integers(1, 12), min_size=2, max_size=20), st.integers(13, 40))
def test_every_token_is_there_once(lengths: list[int], width: int) -> None:
    of = random_batch(lengths, list(range(len(lengths))))
    packing = Packing.of(of.input_ids_BT, of.loss_weights_BT, lengths, width)
    flat = packing.input_ids_RL.flatten()
    for record, (start, length) in enumerate(zip(packing.starts, packing.lengths, strict=True)):
        own = slice(start, start + length)
        assert torch.equal(flat[own], of.input_ids_BT[record, :length])
        assert packing.position_ids_RL.flatten()[own].tolist() == list(range(length))
        assert (packing.record_RL.flatten()[own] == record).all()
        weights = packing.loss_weights_RL.flatten()[own]
        assert torch.equal(weights, of.loss_weights_BT[record, :length])
    padding = packing.record_RL == len(lengths)
    assert int(padding.sum()) == flat.numel() - sum(lengths)
    assert packing.loss_weights_RL[padding].sum() == 0
    starts = packing.position_ids_RL == 0
    assert int(starts.sum()) == len(lengths) + int(padding.any(1).sum())


def test_first_token_is_not_predicted_by_the_record_before() -> None:
    """Whatever weight it has: position 0 is predicted by none."""
    of = random_batch([4, 4, 4], [0, 1, 2])
    of.loss_weights_BT[:, 0] = 1.0
    assert of.packed([4, 4, 4], 12).packing.loss_weights_RL[0, [0, 4, 8]].tolist() == [0, 0, 0]  # type: ignore[union-attr]


@given(st.lists(st.integers(1, 30), min_size=2, max_size=12), st.data())
def test_sums_and_products_are_of_own_tokens(lengths: list[int], data: st.DataObject) -> None:
    """Against sums over each unit's tokens, with rubbish in the padding."""
    n_units = data.draw(st.integers(1, len(lengths)))
    own = st.integers(0, n_units - 1)
    units = torch.tensor([data.draw(own) for _ in lengths])
    of = random_batch(lengths, list(range(len(lengths))))
    packing = Packing.of(of.input_ids_BT, of.loss_weights_BT, lengths, 32)
    layout = BatchLayout.of_packed(packing, n_units, units)
    left, right = (layout.split(torch.randn(*packing.shape, d), "w") for d in (3, 5))
    ids = torch.randint(7, (layout.sequences, 1))
    owner = torch.cat([units, torch.tensor([-1])])[packing.record_RL.flatten()]
    scale_U = torch.rand(n_units)
    kept = FactoredGradients((), layout, (3, 5))
    for unit in range(n_units):
        of_unit = owner == unit
        product = left[of_unit, 0].T @ right[of_unit, 0]
        torch.testing.assert_close(layout.products(left, right)[unit], product)
        torch.testing.assert_close(layout.sums(left)[unit], left[of_unit, 0].sum(0))
        table = torch.zeros(7, 5).index_add_(0, ids[of_unit, 0], right[of_unit, 0])
        torch.testing.assert_close(layout.lookups(ids, right, 7)[unit], table)
    assert kept.layout.of_sequences(scale_U)[owner < 0].sum() == 0


class _Leaking(nn.Module):
    """A model whose attention is causal over the whole row."""

    def __init__(self, loss: CausalLmLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, of: UnitBatch) -> Tensor:
        assert of.packing is not None
        packing = of.packing
        running = torch.arange(packing.shape[1]).expand(packing.shape)
        object.__setattr__(packing, "position_ids_RL", running)
        losses: Tensor = self.loss(of)
        return losses


def test_mutant_attention_over_the_whole_row_is_convicted() -> None:
    loss, packed = fitted("llama", "lora"), batch()
    found = per_example_gradients(_Leaking(loss), packed).dense()
    truth = stacked(brute_force_gradients(loss, packed))
    named = {name.removeprefix("loss."): value for name, value in found.items()}
    with pytest.raises(AssertionError):
        assert_alike(named, truth, 1e-5)


def _too_early(packing: Packing) -> Packing:
    """A record's rows begin with its neighbour's. With one only it would do no harm: a record's
    last token predicts nothing, and its gradient is zero."""
    starts = tuple(max(0, start - 2) for start in packing.starts)
    return Packing(
        packing.input_ids_RL,
        packing.loss_weights_RL,
        packing.position_ids_RL,
        packing.record_RL,
        starts,
        packing.lengths,
    )


def test_mutant_rows_of_the_neighbour_are_convicted(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, packed = fitted("llama", "lora"), batch()
    real = BatchLayout.of_packed
    monkeypatch.setattr(
        BatchLayout,
        "of_packed",
        classmethod(lambda cls, packing, n, units: real(_too_early(packing), n, units)),
    )
    found: PerUnitGradients = per_example_gradients(loss, packed)
    with pytest.raises(AssertionError):
        assert_alike(found.dense(), stacked(brute_force_gradients(loss, packed)), 1e-5)
    with pytest.raises(UnsupportedLayerError):
        verify(loss, packed_public_batch(61))


def test_unfused_loss_is_that_of_the_records() -> None:
    loss, packed = fitted("llama", "full"), batch()
    loss._fused = False
    with torch.no_grad():
        torch.testing.assert_close(loss(packed), loss(packed.padded()), rtol=1e-5, atol=1e-6)
        row = packed.input_ids_BT[0:1, :7]
        logits: Any = loss.model(input_ids=row)
        own = F.cross_entropy(logits.logits[0, :-1], row[0, 1:])
    torch.testing.assert_close(loss(packed)[0], own, rtol=1e-5, atol=1e-6)
