"""Kernels as they must not be used: each mutant is killed by the check that is for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from engine.privacy import test_chacha, test_factors, test_kernels
from taciturn.engine.privacy import chacha, factors, kernels

Patch = pytest.MonkeyPatch


def emulated(check: Callable[[torch.device], None]) -> Callable[[Patch], None]:
    """The check on tables of addresses, read by a processor."""

    def run(patch: Patch) -> None:
        patch.setattr(kernels, "_launch", test_kernels.emulated)
        patch.setattr(kernels, "_shape", lambda dtype: {"TYPE": dtype})
        check(torch.device("cpu"))

    return run


def kernel_not_verified(patch: Patch) -> None:
    real = chacha._verify

    def verify(device: torch.device) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(chacha, "_stream", chacha._computed)
            real.__wrapped__(device)

    verify.cache_clear = lambda: None  # type: ignore[attr-defined]
    patch.setattr(chacha, "_verify", verify)


def sums_not_verified(patch: Patch) -> None:
    patch.setattr(kernels, "_same", lambda own, other: True)


def memory_ignored(patch: Patch) -> None:
    """Rows of a transposed gradient taken for rows of the gradient."""
    patch.setattr(kernels, "_order", lambda value: list(range(1, value.ndim)))
    patch.setattr(kernels, "_stored", lambda value: value)


def pieces_overlap(patch: Patch) -> None:
    real = kernels.np.minimum
    patch.setattr(kernels.np, "minimum", lambda sizes, span: real(sizes, span + 1))


def no_bound_on_copies(patch: Patch) -> None:
    patch.setattr(factors, "_slices", lambda count, entries: iter([slice(0, count)]))


def transposed(device: torch.device) -> None:
    test_kernels.test_gradients_may_lie_in_memory_as_they_like(lambda v: v.transpose(1, 2), device)


def every_shape(device: torch.device) -> None:
    test_kernels.test_norms_and_sums_of_every_type_and_shape(torch.float32, 3, device)


def memory(patch: Patch) -> None:
    test_factors.test_memory_is_bounded_whatever_units_tokens_and_features(
        (1200, 24), [0, 1, 2, 3, 4, 5, 6, 7], False, patch
    )


MUTANTS: dict[str, tuple[Callable[[Patch], None], Callable[[Patch], None]]] = {
    "a kernel's stream is not verified": (
        kernel_not_verified,
        test_chacha.test_a_device_whose_kernel_differs_is_refused,
    ),
    "a kernel's sums are not verified": (
        sums_not_verified,
        lambda patch: test_kernels.test_a_device_whose_kernels_differ_is_refused(1, patch),
    ),
    "memory is taken for rows": (memory_ignored, emulated(transposed)),
    "pieces overlap": (pieces_overlap, emulated(every_shape)),
    "copies without a bound": (no_bound_on_copies, memory),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_dies(name: str) -> None:
    mutate, check = MUTANTS[name]
    with pytest.MonkeyPatch.context() as patch:
        check(patch)
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        # What is not raised fails by pytest's own exception.
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check(patch)
