"""What ends a run, and what is never done about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support.tiny_models import VOCABULARY, build, with_lora
from taciturn.engine.model.loss import CausalLmLoss, can_pack
from taciturn.engine.model.preference import PreferenceLoss
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.ranks import ALONE
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.training import loop
from taciturn.errors import MemoryLimitError
from taciturn.wire.events import FailureCode
from taciturn.worker.failures import failure_code


def test_a_gpu_without_memory_ends_the_run_and_says_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Smaller microbatches from there on would show who was drawn."""
    tries: list[object] = []

    def full(run: object, state: object, *, resume: bool) -> None:
        tries.append(run)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(loop, "_state", lambda run: None)
    monkeypatch.setattr(loop, "_train", full)
    run: Any = SimpleNamespace(plan=SimpleNamespace(privacy=None))
    with pytest.raises(MemoryLimitError, match=r"--resume and a smaller microbatch_tokens"):
        loop.train(run, resume=False)
    assert len(tries) == 1
    for error in (MemoryLimitError("full"), torch.OutOfMemoryError("full")):
        assert failure_code(error) is FailureCode.RESOURCES


@pytest.mark.parametrize("packed", [False, True])
def test_a_gpu_computes_the_longest_record_before_one_is_drawn(
    monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """Else a run that has no room for it would fail when somebody with such a record is drawn."""
    tried: list[tuple[torch.Size, int, Form, bool]] = []

    def computed(loss: object, batch: UnitBatch, form: Form, *, private: bool) -> int:
        assert (batch.positions_BT is not None) == packed
        tried.append((batch.input_ids_BT.shape, batch.n_units, form, private))
        return 0

    monkeypatch.setattr(loop, "microbatch_peak", computed)
    monkeypatch.setattr(UnitBatch, "to", lambda batch, device: batch)
    for device in ("cpu", "cuda"):
        weight = SimpleNamespace(device=torch.device(device))
        loss = SimpleNamespace(parameters=lambda weight=weight: iter([weight]))
        run: Any = SimpleNamespace(loss=loss, vocabulary=61, form=Form.AUTO)
        loop._rehearse(run, loop.BatchLimits(48, 1, 48, packed=packed))
    shape = torch.Size([1, 48])
    assert sorted(tried) == [(shape, 1, form, True) for form in (Form.AUTO, Form.INSTANTIATE)]


@pytest.mark.parametrize(
    ("batch_size", "free", "shapes"),
    [
        (1024, 0, [(24, 16), (24, 64)]),  # what leaves few places for fillers
        (1024, 4096, [(256, 16), (64, 64)]),  # as many as start in the same time
        (100, 4096, [(96, 16), (64, 64)]),  # not more than are drawn
        (2, 4096, [(4, 16), (4, 64)]),
    ],
)
def test_places_of_a_microbatch(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, free: int, shapes: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(loop, "free_tokens", lambda loss: free)
    monkeypatch.setattr(loop, "gradient_units", lambda loss: 500)
    plan: Any = SimpleNamespace(batch_size=batch_size, record_tokens=512)
    loss: Any = None
    limits = loop.batch_limits(plan, loss, 8192, ALONE)
    assert [(limits.units_of(width, 1), width) for width in (16, 64)] == shapes


@pytest.mark.parametrize(
    ("free", "records", "tried"),
    [
        (0, 1, [(6, 1, 16), (6, 1, 40)]),
        (0, 4, [(6, 1, 16), (6, 1, 40), (1, 4, 16), (1, 4, 40)]),
        (
            64,
            3,
            [(6 // count, count, width) for count in (1, 2, 3) for width in (16, 32, 40)],
        ),
    ],
)
def test_companies_of_units_of_several_records_are_tried_too(
    monkeypatch: pytest.MonkeyPatch, free: int, records: int, tried: list[tuple[int, ...]]
) -> None:
    """On a GPU, which has tokens that take no time, in every shape that a microbatch may have."""
    seen = []

    def noted(*given: Any, packed: bool) -> bool:
        shape, count = given[2], given[4]
        seen.append((shape[0], count, shape[1]))
        assert not packed
        return count < records or records == 1

    monkeypatch.setattr(loop, "same_in_company", noted)
    run: Any = SimpleNamespace(loss=None, vocabulary=9, form=None, records=records)
    limits = loop.BatchLimits(256, 6, 40, places=6, free_tokens=free, steps=1)
    assert loop._same_in_company(run, limits) == (records == 1)
    stops = [shape for shape in tried if shape[1] < records or records == 1]
    assert seen == tried[: len(stops) + (records > 1)]


@pytest.mark.parametrize(
    ("name", "records", "drawn", "tokens", "packed"),
    [
        ("llama", 4, 32, 32, True),
        ("llama", 4, 31, 32, False),
        ("llama", 4, 32, 8192, False),
        ("llama", 1, 32, 32, False),
        ("bloom", 4, 32, 32, False),
        ("falcon-alibi", 4, 32, 32, False),
    ],
)
def test_records_share_rows_where_the_model_tells_them_apart(
    name: str, records: int, drawn: int, tokens: int, packed: bool
) -> None:
    """Bloom is told no positions, and Falcon's ALiBi heeds none."""
    plan = SimpleNamespace(max_tokens=tokens, batch_size=drawn)
    loss = CausalLmLoss(build(name))
    run: Any = SimpleNamespace(
        loss=loss, vocabulary=VOCABULARY, records=records, plan=plan, ranks=ALONE
    )
    assert loop._packs(run) == packed


def test_pairs_of_answers_do_not_share_rows() -> None:
    assert can_pack(CausalLmLoss(build("llama")))
    loss = PreferenceLoss(with_lora(build("llama").requires_grad_(False)), 0.1)
    assert not can_pack(loss)
