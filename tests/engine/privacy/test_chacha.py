"""The key stream is ChaCha20's, bit for bit, and noise made of it has the law."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given
from hypothesis import strategies as st

from taciturn.engine.privacy import chacha, kernels, rng
from taciturn.engine.privacy.chacha import key_stream
from taciturn.engine.privacy.rng import SecureStream
from taciturn.errors import GuaranteeError

KEY = bytes(range(32))


def key_of(raw: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(raw, dtype="<i4").copy())


def stream_of_library(key: bytes, size: int, nonce: bytes = bytes(12)) -> bytes:
    """cryptography's ChaCha20, from block 0 on."""
    cipher = Cipher(algorithms.ChaCha20(key, bytes(4) + nonce), mode=None)
    return cipher.encryptor().update(bytes(size))


def test_the_vector_of_the_rfc() -> None:
    """RFC 8439, appendix A.1, test vectors 1 (key 0, block 0) and 2 (key 0, block 1)."""
    blocks = key_stream(torch.zeros(8, dtype=torch.int32), 2).numpy().astype("<i4").tobytes()
    assert blocks[:64].hex() == (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )
    assert blocks[64:].hex() == (
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=12, max_size=12), st.integers(0, 70))
def test_equals_another_implementation(key: bytes, nonce: bytes, n_blocks: int) -> None:
    words = struct.unpack("<3I", nonce)
    own = key_stream(key_of(key), n_blocks, words).numpy().astype("<i4").tobytes()
    assert own == stream_of_library(key, 64 * n_blocks, nonce)


def test_many_blocks_equal_another_implementation() -> None:
    """The counter goes beyond 16 bits."""
    n_blocks = 70_000
    own = key_stream(key_of(KEY), n_blocks).numpy().astype("<i4").tobytes()
    assert own == stream_of_library(KEY, 64 * n_blocks)


def test_what_is_no_key_is_refused() -> None:
    with pytest.raises(ValueError, match="8 integers of 32 bits"):
        key_stream(torch.zeros(8, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="no integer of 32 bits"):
        key_stream(key_of(KEY), 1, (2**32, 0, 0))
    with pytest.raises(GuaranteeError, match="at most 2147483647"):
        key_stream(key_of(KEY), 2**31)


def test_a_device_whose_integers_differ_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    chacha._verify.cache_clear()
    chacha._verify(torch.device("cpu"))
    chacha._verify.cache_clear()
    real, streams = chacha._computed, iter((1, 0))
    monkeypatch.setattr(chacha, "_computed", lambda *given: real(*given) + next(streams))
    with pytest.raises(GuaranteeError, match="do not give ChaCha20's stream"):
        chacha._verify(torch.device("cpu"))


def test_a_device_whose_kernel_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its integers may be right: noise is made by the kernel."""
    asked: list[int] = []

    def kernel(key_8: torch.Tensor, n_blocks: int, nonce: list[int]) -> torch.Tensor:
        asked.append(n_blocks)
        words = chacha._computed(key_8, n_blocks, nonce)
        words[-1, -1] += last
        return words

    monkeypatch.setattr(kernels, "available", lambda device: True)
    monkeypatch.setattr(kernels, "key_stream", kernel)
    last = 0
    chacha._verify.cache_clear()
    chacha._verify(torch.device("cpu"))
    assert asked == [1003], "what is verified is what is used"
    last = 1
    chacha._verify.cache_clear()
    with pytest.raises(GuaranteeError, match="do not give ChaCha20's stream"):
        chacha._verify(torch.device("cpu"))
    chacha._verify.cache_clear()
    last = 0
    assert key_stream(key_of(KEY), 5).shape == (5, 16)
    assert asked[-1] == 5


class ElsewhereStream(SecureStream):
    """Makes its noise as for another device, on this one."""

    def _own_bits(self, half: int, device: torch.device) -> torch.Tensor:
        return self._device_bits(half, device)


def elsewhere(count: int, chunk: int, stream: SecureStream | None = None) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rng, "NORMAL_CHUNK", chunk)
        return (stream or ElsewhereStream(KEY)).normal((count,))


def test_every_chunk_has_a_key_of_its_own() -> None:
    """No value comes twice: neither in a draw nor in the next one."""
    stream = ElsewhereStream(KEY)
    drawn = torch.cat([elsewhere(1001, 64, stream) for _ in range(3)])
    assert len(drawn) == 3003
    assert len(drawn.unique()) == 3003


def test_is_box_muller_on_the_bits_of_the_drawn_keys() -> None:
    keys = SecureStream(KEY).integers(8).tobytes()
    values = elsewhere(16, 8).numpy()
    for chunk in range(2):
        raw = stream_of_library(keys[32 * chunk :][:32], 64)
        bits = np.frombuffer(raw, dtype="<i8").reshape(2, 4)
        radius = np.sqrt(-2 * np.log(((bits[0] & (2**63 - 1)) + 0.5) * 2.0**-63))
        angle = bits[1] * (math.pi * 2.0**-63)
        expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        np.testing.assert_allclose(values[8 * chunk :][:8], expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("bits", "radius"),
    [(0, 9.4), (-(2**63), 9.4), (-1, 0.0), (2**63 - 1, 0.0)],
)
def test_the_extreme_bits_give_finite_values(bits: int, radius: float) -> None:
    """The least uniform is 2^-64, whose normal value is 9.42; the greatest rounds to 1."""
    for device_path in (True, False):
        one, other = torch.empty(2, 3, dtype=torch.float64)
        given_bits = torch.tensor([[bits] * 3, [0, 2**62, -(2**63)]])
        if device_path:  # the branch without numpy, on the CPU
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(np, "log", lambda x, out: torch.from_numpy(x).log_())
                rng._box_muller(given_bits, one, other)
        else:
            rng._box_muller(given_bits, one, other)
        assert torch.isfinite(one).all()
        assert torch.isfinite(other).all()
        assert torch.hypot(one, other).tolist() == pytest.approx([radius] * 3, abs=0.03)


def test_the_identity_is_that_of_the_stream_alone() -> None:
    """A drawn key is kept nowhere."""
    stream = ElsewhereStream(KEY)
    before = set(vars(stream))
    stream.normal((100,))
    assert set(vars(stream)) == before
    assert chacha.WORDS == 16
