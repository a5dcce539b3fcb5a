"""The size of a microbatch on a GPU: from public shapes and free memory, and it fits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from support.tiny_models import VOCABULARY, build, with_lora
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.training import microbatch
from taciturn.engine.training.batch import widths
from taciturn.engine.training.memory import (
    gradient_units,
    microbatch_peak,
    random_batch,
    trained_numbers,
)
from taciturn.engine.training.microbatch import (
    fitting_tokens,
    microbatch_tokens,
    most_tokens,
    wants_checkpointing,
)
from taciturn.spec import FitSpec

CPU, LONGEST = torch.device("cpu"), 64
SPEC = FitSpec(target_epsilon=3, delta=1e-5)
Room = Callable[[float, float], None]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    """A device with so many free bytes, of so many; what is trained has its state beside them."""

    def set_room(free: float, total: float) -> None:
        monkeypatch.setattr(microbatch, "available_bytes", lambda device: int(free))
        monkeypatch.setattr(microbatch, "total_bytes", lambda device: int(total))

    return set_room


def loss_of(method: str) -> CausalLmLoss:
    model = build("llama")
    return CausalLmLoss(model if method == "full" else with_lora(model))


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("megabytes", [8, 24])
def test_what_is_chosen_fits_at_every_length(
    room: Room, method: str, private: bool, megabytes: int
) -> None:
    loss = loss_of(method)
    spec = SPEC if private else SPEC.model_copy(update={"target_epsilon": "unlimited"})
    state, free = 28 * trained_numbers(loss), megabytes * 1e6
    room(state + free, 0)
    tokens = fitting_tokens(loss, spec, VOCABULARY, LONGEST)
    assert tokens > 2 * LONGEST
    largest = 0
    for width in (widths(LONGEST)[0], 32, LONGEST):
        units = min(tokens // width, gradient_units(loss))
        batch = random_batch(VOCABULARY, units, width, CPU)
        largest = max(largest, microbatch_peak(loss, batch, Form.AUTO, private=private))
    print(f"{tokens} tokens take {largest / free:.2f} of the room")
    assert largest <= free
    assert largest >= free / 4


def test_a_reserve_is_left(room: Room) -> None:
    loss = loss_of("lora")
    room(20e6, 0)
    all_of_it = fitting_tokens(loss, SPEC, VOCABULARY, LONGEST)
    room(20e6, 100e6)
    assert fitting_tokens(loss, SPEC, VOCABULARY, LONGEST) < 0.7 * all_of_it
    room(20e6, 1e9)
    assert fitting_tokens(loss, SPEC, VOCABULARY, LONGEST) == 0


def test_little_more_or_less_free_memory_is_the_same_size() -> None:
    sizes = [most_tokens(1e9 + 1e5 * n, 1e5, 1e6, 16, 16) for n in range(100)]
    assert set(sizes) == {8192}
    assert most_tokens(0, 1.0, 1.0, 8, 16) == most_tokens(-5, 1.0, 1.0, 8, 16) == 0
    # As many units as tokens allow, or as may be.
    assert most_tokens(17e5, 1.0, 16e3, 10_000, 16) == 1536
    assert most_tokens(17e5, 1e3, 16e3, 10, 16) == 1536


@pytest.mark.parametrize(("tokens", "kept"), [(None, 2048), (96, 96)])
def test_elsewhere_it_is_what_it_was(tokens: int | None, kept: int) -> None:
    spec = SPEC.model_copy(update={"microbatch_tokens": tokens})
    assert microbatch_tokens(loss_of("lora"), spec, VOCABULARY, LONGEST) == kept


def test_checkpointing_is_for_devices_with_too_little_room(room: Room) -> None:
    loss = loss_of("lora")
    room(1e12, 0)
    assert not wants_checkpointing(loss, SPEC, VOCABULARY, LONGEST)
    room(3e6, 0)
    assert wants_checkpointing(loss, SPEC, VOCABULARY, LONGEST)
    small = SPEC.model_copy(update={"microbatch_tokens": 64})
    assert not wants_checkpointing(loss, small, VOCABULARY, LONGEST)


def test_where_one_unit_fills_what_gradients_may_take(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two units at once would not fit, and are never computed."""
    loss, sizes = loss_of("full"), []

    def counted(loss: CausalLmLoss, batch: UnitBatch, form: Form, *, private: bool) -> int:
        sizes.append(batch.n_units)
        return microbatch_peak(loss, batch, form, private=private)

    monkeypatch.setattr(microbatch, "gradient_units", lambda loss: 1)
    monkeypatch.setattr(microbatch, "microbatch_peak", counted)
    room(1e12, 0)
    assert fitting_tokens(loss, SPEC, VOCABULARY, LONGEST) == LONGEST
    assert not wants_checkpointing(loss, SPEC, VOCABULARY, LONGEST)
    room(0, 0)
    assert wants_checkpointing(loss, SPEC, VOCABULARY, LONGEST)
    assert set(sizes) == {1}


@pytest.mark.parametrize(("free", "most"), [(0, 8192), (6000, 12_000), (10**6, 32_768)])
def test_more_than_is_useful_is_not_taken(
    room: Room, monkeypatch: pytest.MonkeyPatch, free: int, most: int
) -> None:
    monkeypatch.setattr(microbatch, "free_tokens", lambda loss: free)
    room(1e12, 0)
    assert fitting_tokens(loss_of("lora"), SPEC, VOCABULARY, LONGEST) == most
