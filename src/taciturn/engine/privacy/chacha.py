"""ChaCha20 (RFC 8439) in torch's integer operations: a key stream on the device that needs it.

AES on the processor costs 10 ns a normal value and a copy to the device. Here every block of the
stream is computed at once, by the same few operations on vectors of 32-bit integers, on any device;
where there is a kernel, in one launch instead of a thousand.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from taciturn.engine.privacy import kernels
from taciturn.errors import GuaranteeError

WORDS = 16
"""Integers of 32 bits in a block of the stream."""
_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # RFC 8439, section 2.3
_DOUBLE_ROUNDS = 10
_COLUMNS_AND_DIAGONALS = (
    *((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)),
    *((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)),
)
_MOST_BLOCKS = 2**31 - 1
"""Blocks of one key: a counter of 31 bits never wraps, so that no block comes twice."""


def key_stream(key_8: Tensor, n_blocks: int, nonce: Sequence[int] = (0, 0, 0)) -> Tensor:
    """Blocks 0 to n_blocks - 1 of the key's stream: int32 (n_blocks, 16), on the key's device.

    Guarantee: bit for bit the stream of RFC 8439, section 2.4, on every device whose 32-bit
    integers wrap: the bytes are those of each int32 in little-endian order.

    Args:
        key_8: the 256 bits of the key, int32.
        n_blocks: of 64 bytes each.
        nonce: three integers of 32 bits.

    Raises:
        GuaranteeError: for more blocks than a counter tells apart, or on a device whose integers
            or whose kernel give another stream.
    """
    if not 0 <= n_blocks <= _MOST_BLOCKS:
        raise GuaranteeError(f"{n_blocks} blocks of one key: at most {_MOST_BLOCKS} differ")
    if key_8.dtype != torch.int32 or key_8.shape != (8,):
        raise ValueError(f"a key is 8 integers of 32 bits, not {key_8.dtype} {list(key_8.shape)}")
    if key_8.device.type != "cpu":
        _verify(key_8.device)
    return _stream(key_8, n_blocks, [_signed(word) for word in nonce])


def _stream(key_8: Tensor, n_blocks: int, nonce: list[int]) -> Tensor:
    """In the way that suits the device."""
    fast = kernels.available(key_8.device)
    return (kernels.key_stream if fast else _computed)(key_8, n_blocks, nonce)


@functools.cache
def _verify(device: torch.device) -> None:
    """Compare the device's integers and its kernel with the CPU's, once: noise rests on them."""
    key_8, blocks, nonce = torch.arange(8, dtype=torch.int32) * 0x1F3D5B79, 1003, [-7, 0, 2**31 - 1]
    expected = _computed(key_8, blocks, nonce)
    for compute in (_computed, _stream):
        if not torch.equal(compute(key_8.to(device), blocks, nonce).cpu(), expected):
            raise GuaranteeError(
                f"the integers of {device} do not give ChaCha20's stream; fit on another device, "
                "and report this"
            )


def _computed(key_8: Tensor, n_blocks: int, nonce: list[int]) -> Tensor:
    counter_B = torch.arange(n_blocks, dtype=torch.int32, device=key_8.device)
    zero_B = torch.zeros_like(counter_B)
    first = [
        *(zero_B + _signed(word) for word in _CONSTANTS),
        *(zero_B + word for word in key_8.unbind()),
        counter_B,
        *(zero_B + word for word in nonce),
    ]
    state = list(first)
    for _ in range(_DOUBLE_ROUNDS):
        for a, b, c, d in _COLUMNS_AND_DIAGONALS:
            _quarter_round(state, a, b, c, d)
    return torch.stack([word + start for word, start in zip(state, first, strict=True)], dim=1)


def _quarter_round(state: list[Tensor], a: int, b: int, c: int, d: int) -> None:
    """RFC 8439, section 2.1, on every block at once."""
    for one, other, mixed, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        state[one] = state[one] + state[other]
        state[mixed] = _rotated(state[mixed] ^ state[one], bits)


def _rotated(words: Tensor, bits: int) -> Tensor:
    """To the left. The shift to the right copies the sign, which the mask takes away."""
    return (words << bits) | ((words >> (32 - bits)) & ((1 << bits) - 1))


def _signed(word: int) -> int:
    """The int32 of the same 32 bits."""
    if not 0 <= word < 2**32:
        raise ValueError(f"{word} is no integer of 32 bits")
    return word - 2**32 if word >= 2**31 else word
