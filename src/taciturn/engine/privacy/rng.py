"""Randomness that an adversary cannot predict: OS entropy, AES-256 in counter mode, ChaCha20.

User seeds never reach this module, and the state of torch's or numpy's global generators plays no
part in it: noise that follows from a seed can be subtracted by whoever guesses the seed. A stream
cannot be saved, copied or restored: no released file can hold it, and after a crash there is a
fresh key, so no part of a stream can be used twice.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

from taciturn.engine.privacy import chacha
from taciturn.errors import GuaranteeError

_TWO_TO_64 = 2.0**64
_LARGEST = 2**63 - 1
# Integers of a cipher block.
_BLOCK = 2
# Trials made at once: bounds the memory beside the result, whatever its size.
_CHUNK = 1 << 20
NORMAL_CHUNK = 1 << 18
"""Normal values made at once: so few stay in a processor's cache, and yet the twenty operations on
them take longer than to call them, and several threads can share them. Even."""
DEVICE_CHUNK = 1 << 22
"""Normal values made at once on another device. Even. Each of the twenty operations on so many
takes longer than its launch, so more would cost memory and save nothing: these take 0.1 GB, or 0.3
GB with ChaCha20 in torch's operations."""
_CPU = torch.device("cpu")
_ZEROS = memoryview(bytes(8 * NORMAL_CHUNK))


class SecureStream:
    """A stream of random bits; AES-256-CTR keyed once, never rewound.

    Guarantee: with `SecureStream.fresh()`, outputs are computationally indistinguishable from
    uniform to anyone who has not read this process's memory.
    """

    def __init__(self, key: bytes) -> None:
        """Key the stream with 32 bytes. Training uses `fresh`; a fixed key is for tests only."""
        if len(key) != 32:
            raise ValueError(f"key has {len(key)} bytes; AES-256 needs exactly 32")
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._process = os.getpid()
        self._identity = hashlib.sha256(b"taciturn stream" + key).hexdigest()[:32]

    @classmethod
    def fresh(cls) -> SecureStream:
        """A stream keyed by the operating system's entropy source."""
        return cls(os.urandom(32))

    @property
    def identity(self) -> str:
        """Names the key without revealing it: two streams with one identity share their bits."""
        return self._identity

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SecureStream cannot be saved: its bits would be used twice")

    def integers(self, count: int) -> NDArray[np.uint64]:
        """`count` uniform integers in [0, 2^64).

        Raises:
            GuaranteeError: in a forked process, whose parent will draw the same bits.
        """
        if os.getpid() != self._process:
            raise GuaranteeError(
                "a SecureStream was carried into another process, where its bits would be used "
                "twice; make a fresh one there"
            )
        out = np.empty(count + _BLOCK, dtype=np.uint64)  # the cipher asks for a block of room
        zeros = _ZEROS[: 8 * count] if count <= NORMAL_CHUNK else bytes(8 * count)
        self._encryptor.update_into(zeros, out.data.cast("B"))
        return out[:count]

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """`count` independent trials, each true with `probability` rounded down to 2^-64.

        Rounding down samples a unit no more often than is accounted for.
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"probability={probability} must lie in [0, 1]")
        if probability == 1:
            return np.ones(count, dtype=np.bool_)
        threshold = np.uint64(math.floor(probability * _TWO_TO_64))
        out = np.empty(count, dtype=np.bool_)
        for start in range(0, count, _CHUNK):
            part = out[start : start + _CHUNK]
            np.less(self.integers(len(part)), threshold, out=part)
        return out

    def normal(self, shape: Sequence[int], device: torch.device = _CPU) -> Tensor:
        """Independent standard normal values, float64 on `device`.

        Box-Muller on 63-bit uniforms in (0, 1): exact up to float64 arithmetic within 9.4 standard
        deviations; the mass beyond is below 2^-63 per value. A shape of () is one value. Elsewhere
        than on the CPU the bits are ChaCha20's, each chunk's under a key of its own that this
        stream draws, so that no bit is used twice there either.
        """
        count = math.prod(shape)
        if count == 0:  # as of a rank that owns no row
            return torch.empty(tuple(shape), dtype=torch.float64, device=device)
        chunk = NORMAL_CHUNK if device.type == "cpu" else DEVICE_CHUNK
        bits_of = self._own_bits if device.type == "cpu" else self._device_bits
        out = torch.empty(count + count % 2, dtype=torch.float64, device=device)
        for part in out.split(chunk):
            _box_muller(bits_of(len(part) // 2, device), *part.view(2, -1))
        return out[:count].view(tuple(shape))

    def _own_bits(self, half: int, device: torch.device) -> Tensor:
        """int64 (2, half) of this stream."""
        return torch.from_numpy(self.integers(2 * half).view(np.int64).reshape(2, half)).to(device)

    def _device_bits(self, half: int, device: torch.device) -> Tensor:
        """int64 (2, half), computed on the device under a fresh key."""
        key_8 = torch.from_numpy(self.integers(4).view(np.int32))
        if device.type == "cuda":  # so that nobody waits for the copy
            key_8 = key_8.pin_memory()
        key_8 = key_8.to(device, non_blocking=key_8.is_pinned())
        blocks = chacha.key_stream(key_8, -(-4 * half // chacha.WORDS))
        return blocks.view(-1)[: 4 * half].view(torch.int64).view(2, half)


def _box_muller(bits_2H: Tensor, one_H: Tensor, other_H: Tensor) -> None:
    """Fill two vectors of one length with independent normal values; spends `bits_2H`."""
    # Without the sign bit: integers near 0 keep all their bits, and with them the tails theirs.
    radius_H = bits_2H[0].bitwise_and_(_LARGEST).to(torch.float64)
    radius_H.add_(0.5).mul_(2.0**-63)  # the half keeps log() away from 0
    radius_H.log_().mul_(-2.0).sqrt_()
    angle_H = other_H.copy_(bits_2H[1]).mul_(math.pi * 2.0**-63)
    torch.cos(angle_H, out=one_H).mul_(radius_H)
    angle_H.sin_().mul_(radius_H)
