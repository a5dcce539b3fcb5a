"""Noise made on a device as it must not be: each mutant is killed by the check that is for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.privacy import test_chacha as checks
from taciturn.engine.privacy import chacha, rng
from taciturn.engine.privacy.rng import SecureStream

Patch = pytest.MonkeyPatch


def one_key_for_every_chunk(patch: Patch) -> None:
    keys = SecureStream(checks.KEY).integers(4)
    real = SecureStream.integers
    patch.setattr(
        SecureStream, "integers", lambda self, n: keys.copy() if n == 4 else real(self, n)
    )


def one_counter_for_every_block(patch: Patch) -> None:
    real = torch.arange
    patch.setattr(torch, "arange", lambda *size, **kind: torch.zeros_like(real(*size, **kind)))


def no_addition_of_the_start(patch: Patch) -> None:
    """Without it, the rounds can be undone: the key follows from one block."""
    real = torch.stack
    first = chacha._CONSTANTS[0]
    patch.setattr(
        torch, "stack", lambda words, dim: real([words[0] - chacha._signed(first), *words[1:]], dim)
    )


def arithmetic_shift(patch: Patch) -> None:
    def rotated(words: Tensor, bits: int) -> Tensor:
        return (words << bits) | (words >> (32 - bits))

    patch.setattr(chacha, "_rotated", rotated)


def fewer_rounds(patch: Patch) -> None:
    patch.setattr(chacha, "_DOUBLE_ROUNDS", 4)


def sign_kept(patch: Patch) -> None:
    """The logarithm of a negative number is no number."""
    patch.setattr(rng, "_LARGEST", -1)


def least_uniform_is_zero(patch: Patch) -> None:
    real = Tensor.add_
    patch.setattr(Tensor, "add_", lambda self, value: self if value == 0.5 else real(self, value))


MUTANTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "one key for every chunk": (
        one_key_for_every_chunk,
        checks.test_every_chunk_has_a_key_of_its_own,
    ),
    "one counter for every block": (
        one_counter_for_every_block,
        checks.test_every_chunk_has_a_key_of_its_own,
    ),
    "the start not added": (no_addition_of_the_start, checks.test_the_vector_of_the_rfc),
    "shift that copies the sign": (arithmetic_shift, checks.test_the_vector_of_the_rfc),
    "eight rounds": (fewer_rounds, checks.test_the_vector_of_the_rfc),
    "sign kept": (
        sign_kept,
        lambda: checks.test_the_extreme_bits_give_finite_values(-(2**63), 9.4),
    ),
    "uniform of zero": (
        least_uniform_is_zero,
        lambda: checks.test_the_extreme_bits_give_finite_values(0, 9.4),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_dies(name: str) -> None:
    mutate, check = MUTANTS[name]
    check()
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        with pytest.raises(AssertionError):
            check()
