"""Randomness that an adversary cannot predict: OS entropy, AES-256 in counter mode.

User seeds never reach this module, and the state of torch's or numpy's global generators plays no
part in it (PITFALLS 2). A stream cannot be saved, copied or restored: after a crash there is a
fresh key, so no part of a stream can be used twice (PITFALLS 18).
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

from taciturn.errors import GuaranteeError

_TWO_TO_64 = 2.0**64
# Values made at once: bounds the memory beside the result, whatever its size. Even.
_CHUNK = 1 << 20


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
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype=np.uint64)

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

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Independent standard normal values, float64 on CPU.

        Box-Muller on 64-bit uniforms in (0, 1): exact up to float64 arithmetic within 9.4 standard
        deviations; the mass beyond is below 2^-64 per value. A shape of () is one value.
        """
        out = torch.empty(tuple(shape), dtype=torch.float64)
        for part in out.view(-1).split(_CHUNK):
            part.copy_(self._normal(len(part)))
        return out

    def _normal(self, count: int) -> Tensor:
        half = (count + 1) // 2
        uniform_2H = self._uniform(2 * half).view(2, half)
        radius_H = uniform_2H[0].log_().mul_(-2.0).sqrt_()
        angle_H = uniform_2H[1].mul_(2.0 * math.pi)
        pair_2H = torch.stack((angle_H.cos().mul_(radius_H), angle_H.sin().mul_(radius_H)))
        return pair_2H.flatten()[:count]

    def _uniform(self, count: int) -> Tensor:
        # The +0.5 keeps log() away from 0; float64 resolves values down to 2^-65.
        values = self.integers(count).astype(np.float64)
        return torch.from_numpy(values).add_(0.5).div_(_TWO_TO_64)
