"""Positions that answer from the CPU's memory are positions like any others."""

from __future__ import annotations

import pytest
import torch
from transformers.masking_utils import find_packed_sequence_indices

from support.tiny_models import CONFIGS, VOCABULARY, build
from support.waiting import WaitingError, no_waiting
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.model.output import gives_own_logits, output_terms
from taciturn.engine.model.positions import ConsecutivePositions, PackedPositions, takes_positions
from taciturn.engine.privacy.verification import packs, same_in_company

IDS_BT = torch.randint(VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")
# Routing depends on tokens; and ALiBi's biases are made of Python's numbers in each pass.
WAITING = ("mixtral", "qwen2-moe", "qwen3-moe", "bloom", "mpt", "falcon-alibi")


def test_are_the_positions_of_each_token() -> None:
    positions = ConsecutivePositions.of(IDS_BT)
    assert torch.equal(positions + 0, torch.arange(7).unsqueeze(0))
    assert isinstance(positions.expand(3, -1), ConsecutivePositions)
    assert type(positions + 0) is torch.Tensor


def test_differences_are_those_of_a_plain_tensor() -> None:
    positions = ConsecutivePositions.of(IDS_BT).expand(3, -1)
    plain = positions + 0
    known = torch.diff(positions, prepend=positions[:, :1] - 1, dim=-1)
    assert torch.equal(torch.as_tensor(known), torch.diff(plain, prepend=plain[:, :1] - 1, dim=-1))
    assert torch.equal(torch.diff(positions), torch.diff(plain))


@pytest.mark.parametrize("name", CONFIGS)
def test_change_no_model_and_make_it_ask_no_device(name: str) -> None:
    model = build(name)
    if not gives_own_logits(model):
        pytest.skip("its output layer is its own affair, so that the model is run as a whole")
    body = model.base_model
    with torch.no_grad():
        expected = body(input_ids=IDS_BT, use_cache=False)[0]
        if name in WAITING:
            terms = output_terms(model, IDS_BT)
        else:
            with no_waiting(CPU):
                terms = output_terms(model, IDS_BT)
    assert terms is not None
    assert torch.equal(terms[0][0], expected)


def test_without_them_a_model_asks() -> None:
    model = build("llama")
    assert takes_positions(model.base_model)
    with torch.no_grad(), no_waiting(CPU), pytest.raises(WaitingError):
        model.base_model(input_ids=IDS_BT, use_cache=False)


def test_packed_rows_are_told_apart_wherever_they_are() -> None:
    """Also in a batch in which no row jumps: another kernel there would round otherwise."""
    plain_BT = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    for rows in (plain_BT, plain_BT[1:]):
        with no_waiting(CPU):
            found = find_packed_sequence_indices(PackedPositions.of(rows))
        assert found is not None
        assert torch.equal(found + 0, torch.tensor([[0, 0, 0, 1, 1, 2], [0] * 6])[-len(rows) :])
    assert find_packed_sequence_indices(plain_BT[1:]) is None
    assert type(PackedPositions.of(plain_BT) + 0) is torch.Tensor


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "qwen3", "gemma3"])
def test_records_of_one_row_are_computed_as_in_their_own(name: str) -> None:
    loss = CausalLmLoss(build(name))
    assert packs(loss, VOCABULARY, 40)
    assert not packs(loss, VOCABULARY, 2)  # there is nothing to predict in records so short
    assert same_in_company(loss, VOCABULARY, (4, 24), packed=True)
    assert same_in_company(loss, VOCABULARY, (2, 24), records=2, packed=True)


def test_positions_that_choose_a_kernel_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedPositions, "of", lambda positions_BT: positions_BT)
    assert not same_in_company(CausalLmLoss(build("llama")), VOCABULARY, (4, 24), packed=True)


def test_a_model_that_mixes_the_records_of_a_row_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        PackedPositions, "of", lambda positions_BT: ConsecutivePositions.of(positions_BT)
    )
    assert not packs(CausalLmLoss(build("llama")), VOCABULARY, 40)
