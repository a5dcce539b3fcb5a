"""Kernels, shapes and sizes that a private run on a GPU must not have: each mutant is killed by the
check that is for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend

from engine.model import test_determinism as kernels
from engine.privacy import test_company as company
from engine.training import test_graphs as recordings
from engine.training import test_microbatch as sizes
from taciturn.engine.model import determinism
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy import verification
from taciturn.engine.training import graphs, microbatch

Patch = pytest.MonkeyPatch
DEMAND = torch.use_deterministic_algorithms


@pytest.fixture(autouse=True)
def ordinary_again() -> Iterator[None]:
    """Whatever a mutant leaves behind."""
    yield
    DEMAND(False)
    kernels.MEMORY.fill_uninitialized_memory = True
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_mem_efficient_sdp(True)


def wished_for(patch: Patch) -> None:
    """FlashAttention then sums by atomic operations."""
    patch.setattr(torch, "use_deterministic_algorithms", lambda on, **_: DEMAND(on, warn_only=True))


def attention_of_cudnn(patch: Patch) -> None:
    more = [*determinism._DEMANDED, SDPBackend.CUDNN_ATTENTION]
    patch.setattr(determinism, "_DEMANDED", more)


def settings_kept(patch: Patch) -> None:
    patch.setattr(determinism, "_restore", lambda *before: None)


def sizes_not_compared(patch: Patch) -> None:
    def silent(self: object, func: Callable[..., object], *args: object) -> object:
        return func(*args[1], **(args[2] or {}))  # type: ignore[misc, dict-item]

    patch.setattr(verification._Sizes, "__torch_dispatch__", silent)


def half_of_what_is_measured(patch: Patch) -> None:
    real = microbatch._growth
    patch.setattr(
        microbatch,
        "_growth",
        lambda loss, spec, vocabulary, width, units: tuple(
            value / 2 for value in real(loss, spec, vocabulary, width, units)
        ),
    )


def recordings_not_compared(patch: Patch) -> None:
    patch.setattr(graphs, "same_replayed", lambda *_: True)


def recorded_rows_replayed(patch: Patch) -> None:
    """The rows of each microbatch are not copied to where the recording reads them."""
    patch.setattr(graphs, "copied", lambda value, device: torch.zeros_like(value))


def nothing_compared(patch: Patch) -> None:
    real = verification._all
    patch.setattr(verification, "_all", lambda gradients: real(gradients)[:0])


def room_of(patch: Patch) -> sizes.Room:
    def set_room(free: float, total: float) -> None:
        patch.setattr(microbatch, "available_bytes", lambda device: int(free))
        patch.setattr(microbatch, "total_bytes", lambda device: int(total))

    return set_room


def demanded(patch: Patch) -> None:
    patch.setattr(determinism, "_cublas_is_fixed", lambda device: True)
    kernels.test_attention_is_deterministic_only_where_that_is_demanded(None)


def given_back(patch: Patch) -> None:
    demanded(patch)
    assert kernels.settings() == kernels.ORDINARY


def shapes(patch: Patch) -> None:
    company.test_attention_in_shapes_of_the_records_is_told(torch.float32)


def unlike_recordings(patch: Patch) -> None:
    """A recording that repeats what it was made of is refused."""
    assert not recordings_of(recordings.Counting(recordings.loss_of("llama", "lora").model))


def like_recordings(patch: Patch) -> None:
    assert recordings_of(recordings.loss_of("llama", "lora"))


def recordings_of(loss: CausalLmLoss) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(recordings.recorded_of(loss).recordings)


def fits(patch: Patch, method: str) -> None:
    sizes.test_what_is_chosen_fits_at_every_length(room_of(patch), method, True, 8)


@pytest.mark.parametrize(
    "check", [given_back, shapes, unlike_recordings, like_recordings, partial(fits, method="full")]
)
def test_the_checks_pass(check: Callable[[Patch], None], monkeypatch: Patch) -> None:
    check(monkeypatch)


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (wished_for, demanded),
        (attention_of_cudnn, demanded),
        (settings_kept, given_back),
        (sizes_not_compared, shapes),
        (recordings_not_compared, unlike_recordings),
        (nothing_compared, unlike_recordings),
        (recorded_rows_replayed, like_recordings),
        (half_of_what_is_measured, partial(fits, method="lora")),
    ],
    ids=lambda of: getattr(of, "__name__", "fits"),
)
def test_every_mutant_is_killed(
    mutant: Callable[[Patch], None], check: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check(monkeypatch)
