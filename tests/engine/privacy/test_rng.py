"""Streams nobody can predict, repeat, copy or carry along."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taciturn.engine.privacy import rng
from taciturn.engine.privacy.rng import SecureStream
from taciturn.errors import GuaranteeError

KEY = bytes(range(32))


def test_user_seeds_play_no_part() -> None:
    """HF Trainer calls set_seed(42); noise from the global generators would be predictable."""
    draws = []
    for _ in range(2):
        torch.manual_seed(42)
        np.random.seed(42)
        random.seed(42)
        draws.append(SecureStream.fresh().normal((8,)))
    assert not torch.equal(*draws)


def test_global_generators_are_left_alone() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    SecureStream.fresh().normal((100,))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


@pytest.mark.parametrize("carry", [copy.copy, copy.deepcopy, pickle.dumps])
def test_cannot_be_copied_or_saved(carry: object) -> None:
    with pytest.raises(TypeError, match="twice"):
        carry(SecureStream.fresh())  # type: ignore[operator]


def test_cannot_be_used_in_a_forked_process() -> None:
    """Parent and child would draw the same bits."""
    stream = SecureStream.fresh()
    queue = multiprocessing.get_context("fork").SimpleQueue()

    def child() -> None:
        try:
            stream.integers(1)
            queue.put("drew")
        except GuaranteeError:
            queue.put("refused")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert queue.get() == "refused"
    stream.integers(1)


def test_identity_names_the_key_without_revealing_it() -> None:
    stream = SecureStream(KEY)
    assert stream.identity == SecureStream(KEY).identity
    assert stream.identity != SecureStream.fresh().identity
    assert KEY.hex() not in stream.identity
    before = stream.identity
    stream.integers(3)
    assert stream.identity == before
    assert KEY.hex() not in repr(stream)
    assert KEY not in str(vars(stream)).encode()


def test_never_rewinds() -> None:
    stream = SecureStream(KEY)
    drawn = np.concatenate([stream.integers(500) for _ in range(4)])
    assert len(np.unique(drawn)) == 2000
    assert np.array_equal(drawn, SecureStream(KEY).integers(2000))


def test_is_aes_in_counter_mode() -> None:
    """NIST SP 800-38A would do for the cipher; here, that the key stream is used as it comes."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    block = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    counters = b"".join(n.to_bytes(16, "big") for n in range(4))
    assert SecureStream(KEY).integers(8).tobytes() == block.update(counters)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_key_must_be_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="exactly 32"):
        SecureStream(bytes(size))


def scripted(values: list[int]) -> SecureStream:
    """A stream that yields these integers: to test thresholds exactly."""

    class Scripted(SecureStream):
        def integers(self, count: int) -> np.ndarray:  # type: ignore[type-arg]
            assert count == len(values)
            return np.array(values, dtype=np.uint64)

    return Scripted(KEY)


@given(st.floats(0, 1, exclude_max=True))
def test_bernoulli_threshold_is_exact(probability: float) -> None:
    """True for floor(p * 2^64) of the 2^64 integers, so never with more than p."""
    numerator, denominator = probability.as_integer_ratio()
    threshold = (numerator << 64) // denominator
    around = [max(0, threshold - 1), min(threshold, 2**64 - 1), 0, 2**64 - 1]
    expected = [value < threshold for value in around]
    assert scripted(around).bernoulli(4, probability).tolist() == expected


def test_bernoulli_at_the_ends() -> None:
    assert not SecureStream(KEY).bernoulli(1000, 0.0).any()
    assert SecureStream(KEY).bernoulli(1000, 1.0).all()
    assert SecureStream(KEY).bernoulli(1000, 1 - 2**-53).all()
    assert SecureStream(KEY).bernoulli(0, 0.5).shape == (0,)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_bernoulli_outside_its_bound(probability: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        SecureStream(KEY).bernoulli(3, probability)


def test_chunks_are_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SecureStream(KEY).bernoulli(1000, 0.3)
    monkeypatch.setattr(rng, "_CHUNK", 64)
    assert np.array_equal(SecureStream(KEY).bernoulli(1000, 0.3), whole)
    values = SecureStream(KEY).normal((1000,))
    assert len(values.unique()) == 1000


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (7,), (3, 5), (2, 3, 4), (1, 1)])
def test_normal_has_the_shape_asked_for(shape: tuple[int, ...]) -> None:
    values = SecureStream(KEY).normal(shape)
    assert values.shape == shape
    assert values.dtype == torch.float64
    assert torch.isfinite(values).all()


def test_normal_of_a_torch_size() -> None:
    assert SecureStream(KEY).normal(torch.zeros(4, 2).shape).shape == (4, 2)


@pytest.mark.parametrize("corner", [0, 1, 2**63, 2**64 - 1])
def test_normal_is_finite_at_the_corners(corner: int) -> None:
    values = scripted([corner, corner]).normal((2,))
    assert torch.isfinite(values).all()
    assert float(values.norm()) <= 9.5


def test_largest_value_is_where_the_docstring_says() -> None:
    values = scripted([0, 0]).normal((2,))
    assert float(values.norm()) == pytest.approx(9.4193, abs=1e-4)
