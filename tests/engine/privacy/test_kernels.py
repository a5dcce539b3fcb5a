"""Kernels give what torch's operations give, on a GPU or in triton's interpreter."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.privacy.test_chacha import ElsewhereStream
from taciturn.engine.privacy import chacha, clipping, kernels
from taciturn.engine.privacy.clipping import clip_and_sum, unit_norms
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.types import PerUnitGradients
from taciturn.errors import GuaranteeError

HAS_TRITON = importlib.util.find_spec("triton") is not None
IS_INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
CPU = torch.device("cpu")
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() and not IS_INTERPRETED else CPU
TYPES = sorted(kernels._TYPES, key=str)

runs = pytest.mark.skipif(
    not HAS_TRITON or not (IS_INTERPRETED or DEVICE.type == "cuda"),
    reason="triton is not installed, or neither has a GPU nor is its interpreter on",
)


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
@pytest.mark.skipif(IS_INTERPRETED, reason="this is the inner run")
def test_all_of_this_in_the_interpreter() -> None:
    """Triton reads the variable when it is imported, so it takes another process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[3],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def emulated(kernel: Any, programs: int, table_N4: Tensor, *rest: Any, **constants: Any) -> None:
    """The reductions as a processor does them, from the addresses that a kernel is handed."""
    squares, rows = kernel is kernels._squares, table_N4.tolist()
    result, number = (rest[0].view(-1), 0) if squares else (rest[1], 0)
    units = programs // len(rows) if squares else rest[2]
    for unit in range(units if squares else 1):
        for address, columns, stride, out in rows:
            if squares:
                result[number] = _read(address, unit * stride, columns, constants).square().sum()
                number += 1
                continue
            for other in range(units):
                scale = float(rest[0][other])
                if scale:
                    entries = _read(address, other * stride, columns, constants)
                    result[out : out + columns] += scale * entries


def _read(address: int, first: int, columns: int, constants: dict[str, Any]) -> Tensor:
    dtype: torch.dtype = constants["TYPE"]
    raw = (ctypes.c_byte * (columns * dtype.itemsize)).from_address(
        address + first * dtype.itemsize
    )
    return torch.frombuffer(raw, dtype=dtype).double()


@pytest.fixture(params=["kernels", "emulated"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Kernels where they run; everywhere the same tables of addresses, read by a processor."""
    if request.param == "emulated":
        monkeypatch.setattr(kernels, "_launch", emulated)
        monkeypatch.setattr(kernels, "_shape", lambda dtype: {"TYPE": dtype})
        yield CPU
        return
    if runs.args[0]:
        pytest.skip(runs.kwargs["reason"])
    yield DEVICE


if IS_INTERPRETED:

    @pytest.fixture(autouse=True)
    def _numbers(monkeypatch: pytest.MonkeyPatch) -> None:
        """numpy 2.4 no longer makes an int of an array of one, as this interpreter's loops do."""
        from triton.runtime import interpreter

        patched = interpreter._patch_lang_tensor

        def with_index(tensor: Any, scope: Any) -> None:
            patched(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

        monkeypatch.setattr(interpreter, "_patch_lang_tensor", with_index)


SHAPES = [(), (1,), (5,), (33, 65), (8192,), (8193,), (3, 5, 1201), (0,)]


def random(units: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(units)
    made = [torch.randn(units, *shape, generator=generator).to(dtype) for shape in SHAPES]
    return [value.to(device) for value in made]


def norms(values: list[Tensor]) -> Tensor:
    sums = [value.double().square().flatten(1).sum(1) for value in values if value.ndim > 1]
    return torch.stack(sums + [value.double().square() for value in values if value.ndim == 1]).sum(
        0
    )


def weighted(value: Tensor, scale_U: Tensor) -> Tensor:
    kept_U = scale_U != 0
    return torch.tensordot(scale_U[kept_U], value.double()[kept_U], 1)


def agree(values: list[Tensor], scale_U: Tensor) -> None:
    torch.testing.assert_close(
        kernels.squared_norms(values), norms(values), rtol=1e-13, atol=0, equal_nan=True
    )
    for own, value in zip(kernels.weighted_sums(values, scale_U), values, strict=True):
        assert own.shape == value.shape[1:]
        assert own.is_contiguous()
        torch.testing.assert_close(own, weighted(value, scale_U), rtol=1e-12, atol=1e-13)


def scales(units: int, device: torch.device) -> Tensor:
    return torch.linspace(0.05, 1, units, dtype=torch.float64).to(device)


@pytest.mark.parametrize("units", [1, 2, 5])
@pytest.mark.parametrize("dtype", TYPES)
def test_norms_and_sums_of_every_type_and_shape(
    dtype: torch.dtype, units: int, how: torch.device
) -> None:
    agree(random(units, dtype, how), scales(units, how))


def test_types_may_be_mixed(how: torch.device) -> None:
    values = [value for dtype in TYPES for value in random(3, dtype, how)]
    agree(values[::3], scales(3, how))


@pytest.mark.parametrize(
    "view",
    [
        lambda value: value.transpose(1, 2),
        lambda value: value.transpose(2, 3),
        lambda value: value.permute(0, 3, 1, 2),
        lambda value: value[:, :, 1:],
        lambda value: value[..., ::2],
        lambda value: value[1:],
        lambda value: value[::2],
        lambda value: value.transpose(0, 1),
        lambda value: value[:, :1].expand(-1, 4, -1, -1),
        lambda value: value[:1].expand(3, -1, -1, -1),
        lambda value: value[:1],
        lambda value: value[:0],
    ],
)
def test_gradients_may_lie_in_memory_as_they_like(
    view: Callable[[Tensor], Tensor], how: torch.device
) -> None:
    generator = torch.Generator().manual_seed(0)
    value = view(torch.randn(4, 3, 7, 11, generator=generator).to(how))
    others = [torch.ones(len(value), 2, device=how), value]
    agree(others, scales(len(value), how))


def test_what_is_stored_side_by_side_is_not_copied() -> None:
    value = torch.randn(4, 30, 50)
    for view in (value, value.transpose(1, 2), value[1:], value[::2], value[:, :7]):
        stored = kernels._stored(view)
        assert stored.data_ptr() == view.data_ptr()
    assert kernels._stored(value[:, :, :7]).data_ptr() != value.data_ptr()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_unit_that_is_not_finite_is_left_out(bad: float, how: torch.device) -> None:
    values = random(4, torch.float32, how)
    values[4][2, 8191] = bad
    scale_U = scales(4, how)
    scale_U[2] = 0.0
    assert not torch.isfinite(kernels.squared_norms(values)[2])
    agree(values, scale_U)
    assert all(torch.isfinite(part).all() for part in kernels.weighted_sums(values, scale_U))


def test_a_norm_does_not_depend_on_neighbours(how: torch.device) -> None:
    values = random(5, torch.float32, how)
    others = [torch.full_like(value, float("nan")) for value in values]
    for value, other in zip(values, others, strict=True):
        other[3] = value[3]
    own, beside = kernels.squared_norms(values), kernels.squared_norms(others)
    assert torch.equal(own[3], beside[3])
    assert torch.equal(own, kernels.squared_norms(values))


def test_squares_beyond_fp32(how: torch.device) -> None:
    agree([torch.full((2, 9000), 3e38, device=how)], scales(2, how))
    small = torch.full((2, 9000), 1e-40, device=how)
    assert float(kernels.squared_norms([small])[0]) == pytest.approx(9000 * 1e-80, rel=1e-4)


def test_addresses_beyond_32_bits(how: torch.device) -> None:
    """Of 2^31 entries from one unit to the next, hardly any of which is touched."""
    far = 2**31 + 5
    room = torch.empty(far + 200, dtype=torch.bfloat16, device=how)
    value = room.as_strided((2, 100), (far, 1))
    value.copy_(torch.randn(2, 100, generator=torch.Generator().manual_seed(0)))
    agree([value], scales(2, how))


@runs
@pytest.mark.parametrize("nonce", [(0, 0, 0), (1, -5, 16), (2**31 - 1, -(2**31), 7)])
@pytest.mark.parametrize("blocks", [0, 1, 127, 128, 129, 1000])
def test_the_stream_is_that_of_the_reference(blocks: int, nonce: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(blocks)
    key_8 = torch.randint(-(2**31), 2**31, (8,), generator=generator).to(torch.int32)
    expected = chacha._computed(key_8, blocks, list(nonce))
    own = kernels.key_stream(key_8.to(DEVICE), blocks, nonce).cpu()
    assert own.dtype == torch.int32
    assert torch.equal(own, expected)


@runs
def test_the_vector_of_the_rfc() -> None:
    """RFC 8439, section 2.3.2, but for its counter; appendix A.1, test vector 1."""
    zero_8 = torch.zeros(8, dtype=torch.int32, device=DEVICE)
    block = kernels.key_stream(zero_8, 1, (0, 0, 0)).cpu().numpy().astype("<i4").tobytes()
    assert block.hex() == (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )


@runs
def test_the_check_says_how_far_off_kernels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda device: True)
    kernels._adds_up.cache_clear()
    lines = kernels.check(DEVICE)
    assert len(lines) == len(TYPES)
    assert all("largest relative error" in line for line in lines)
    real = kernels.squared_norms
    monkeypatch.setattr(kernels, "squared_norms", lambda values: real(values) * (1 + 1e-11))
    with pytest.raises(GuaranteeError, match="off by more than 1e-12"):
        kernels.check(DEVICE)


def gradients(device: torch.device = CPU) -> PerUnitGradients:
    values = dict(zip("abcdefg", random(6, torch.float32, device)[:7], strict=True))
    values["b"] = values["b"].bfloat16()
    values["f"][1, 4] = float("nan")
    values["d"] = values["d"].transpose(1, 2)
    return PerUnitGradients(values, torch.zeros(6, device=device))


def test_clipping_with_kernels_is_clipping(
    how: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for bf16, as if a device had no kernel for it."""
    monkeypatch.setattr(kernels, "reduces", lambda value: value.dtype != torch.bfloat16)
    made, norms_U = clip_and_sum(gradients(how), 0.7), unit_norms(gradients(how))
    monkeypatch.setattr(kernels, "reduces", lambda value: False)
    expected = clip_and_sum(gradients(how), 0.7)
    torch.testing.assert_close(
        norms_U, unit_norms(gradients(how)), equal_nan=True, rtol=1e-13, atol=0
    )
    assert list(made.values) == list(expected.values)
    for name, value in made.values.items():
        torch.testing.assert_close(value, expected.values[name], rtol=1e-12, atol=1e-13)
    assert made.counts.n_non_finite == expected.counts.n_non_finite == 1


@runs
@pytest.mark.parametrize("count", [1, 1001])
def test_normal_values_of_the_kernel_are_those_of_the_reference(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits, so the same law and tails: what tests of one say holds for both."""
    key = bytes(range(32))
    expected = ElsewhereStream(key).normal((count,))
    monkeypatch.setattr(kernels, "available", lambda device: True)
    if DEVICE.type == "cpu":
        values = ElsewhereStream(key).normal((count,))
        assert torch.equal(values, expected)
    else:
        values = SecureStream(key).normal((count,), DEVICE).cpu()
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)


def test_kernels_are_for_gpus_with_triton() -> None:
    assert not kernels.available(CPU)
    assert not kernels.reduces(torch.zeros(1, 1))


def raises(*_: object) -> Any:
    raise RuntimeError("Failed to find C compiler")


def test_a_device_that_builds_no_kernels_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda device: True)
    monkeypatch.setattr(kernels, "_sums_of_integers", raises)
    kernels._adds_up.cache_clear()
    with pytest.warns(UserWarning, match="builds no kernel for cpu"):
        norms_U = unit_norms(gradients())
    assert torch.isfinite(norms_U).sum() == 5
    kernels._adds_up.cache_clear()


@pytest.mark.parametrize("which", range(3))
def test_a_device_whose_kernels_differ_is_refused(
    which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(values: list[Tensor], scale_U: Tensor) -> list[Tensor]:
        results = kernels._reference(values, scale_U)
        results[which].view(-1)[0] += 1
        return results

    monkeypatch.setattr(kernels, "available", lambda device: True)
    monkeypatch.setattr(kernels, "_sums_of_integers", off)
    kernels._adds_up.cache_clear()
    with pytest.raises(GuaranteeError, match="do not add up float32"):
        kernels.reduces(torch.zeros(1, 1))
    monkeypatch.setattr(kernels, "_sums_of_integers", kernels._reference)
    assert kernels.reduces(torch.zeros(1, 1))
    kernels._adds_up.cache_clear()


@pytest.mark.parametrize("dtype", TYPES)
def test_the_integers_are_exact_in_every_type(dtype: torch.dtype) -> None:
    values, scale_U = kernels._integers(CPU, dtype)
    exact, _ = kernels._integers(CPU, torch.float64)
    for value, other in zip(values, exact, strict=True):
        assert torch.equal(value.double().nan_to_num(), other.nan_to_num())
    assert not torch.isfinite(values[0][1]).all()
    assert scale_U.tolist() == [-2.0, 0.0, 2.0]
    assert clipping.ROUNDING > 0
