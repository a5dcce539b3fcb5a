"""Checks of the noise on the device: its law, its bits, and the kernels beside them."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import warnings
from functools import partial
from typing import Any

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor

from gpus.items import Item, Outcome, SkippedError
from gpus.models import Place
from taciturn.engine.privacy import chacha, noise
from taciturn.engine.privacy.clipping import empty_sum
from taciturn.engine.privacy.rng import SecureStream

# RFC 8439, section 2.3.2 (block 1), and appendix A.1, test vectors 1 and 2 (blocks 0 and 1).
_RFC_KEY = bytes(range(32))
_RFC_NONCE = bytes.fromhex("000000090000004a00000000")
_RFC_BLOCK = bytes.fromhex(
    "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
    "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
)
_RFC_ZEROS = bytes.fromhex(
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
    "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
)
# Chances of a false alarm: 1e-6 a figure, with some fifteen of them.
_SIGMAS = 4.9
_KOLMOGOROV = 2.7


def items(place: Place) -> list[Item]:
    """All checks of this module."""
    return [
        Item("kernels", 10, partial(_kernels, place)),
        Item("chacha20", 2, partial(_chacha20, place)),
        Item("noise law", 4, partial(_noise_law, place)),
        Item("noise grid", 2, partial(_noise_grid, place)),
    ]


def _words(raw: bytes, device: str) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.int32).to(device)


def _bytes(words: Tensor) -> bytes:
    return words.contiguous().cpu().numpy().tobytes()


def _chacha20(place: Place) -> Outcome:
    """Vectors of RFC 8439, and the stream of another implementation."""
    nonce = [int.from_bytes(_RFC_NONCE[at : at + 4], "little") for at in (0, 4, 8)]
    figures = {
        "section 2.3.2": _bytes(chacha.key_stream(_words(_RFC_KEY, place.device), 2, nonce)[1])
        == _RFC_BLOCK,
        "appendix A.1": _bytes(chacha.key_stream(_words(bytes(32), place.device), 2)) == _RFC_ZEROS,
    }
    blocks = 1 << (8 if place.tiny else 16)
    key, other_nonce = os.urandom(32), os.urandom(12)
    own = chacha.key_stream(
        _words(key, place.device),
        blocks,
        [int.from_bytes(other_nonce[at : at + 4], "little") for at in (0, 4, 8)],
    )
    cipher = Cipher(algorithms.ChaCha20(key, bytes(4) + other_nonce), mode=None)
    expected = cipher.encryptor().update(bytes(64 * blocks))
    figures["cryptography's stream"] = _bytes(own) == expected
    bad = [name for name, good in figures.items() if not good]
    told = f"wrong: {', '.join(bad)}" if bad else f"2 vectors, {blocks} blocks bit for bit"
    return Outcome(not bad, told, figures)


def _noise_law(place: Place) -> Outcome:
    """Moments, distribution, tails and independence of what a stream draws on the device."""
    count = 1 << (16 if place.tiny else 22)
    stream = SecureStream.fresh()
    device = torch.device(place.device)
    first, second = stream.normal((count,), device), stream.normal((count,), device)
    other = SecureStream.fresh().normal((count,), device)
    n = float(count)
    # Each figure in standard deviations of itself under the law.
    scores = {
        "mean": float(first.mean()) * math.sqrt(n),
        "variance": (float(first.square().mean()) - 1) * math.sqrt(n / 2),
        "third moment": float(first.pow(3).mean()) * math.sqrt(n / 15),
        "fourth moment": (float(first.pow(4).mean()) - 3) * math.sqrt(n / 96),
        "next draw": _correlation(first, second),
        "another stream": _correlation(first, other),
        "halves": _correlation(first[: count // 2], first[count // 2 :]),
        "squares of halves": _correlation(
            (first[: count // 2].square() - 1) / math.sqrt(2),
            (first[count // 2 :].square() - 1) / math.sqrt(2),
        ),
        "neighbours": _correlation(first[:-1], first[1:]),
        "squares of neighbours": _correlation(
            (first[:-1].square() - 1) / math.sqrt(2), (first[1:].square() - 1) / math.sqrt(2)
        ),
    }
    for bound in (2.0, 3.0, 4.0):
        chance = math.erfc(bound / math.sqrt(2))
        seen = int((first.abs() > bound).sum())
        spread = math.sqrt(n * chance * (1 - chance))
        # Few are expected far out: a Poisson count of them has longer tails than a normal one.
        scores[f"beyond {bound:g}"] = (seen - n * chance) / max(spread, 2.0)
    kolmogorov = _kolmogorov(first) * math.sqrt(n)
    largest, finite = float(first.abs().max()), bool(torch.isfinite(first).all())
    bad = [name for name, score in scores.items() if not abs(score) <= _SIGMAS]
    bad += ["Kolmogorov-Smirnov"] if not kolmogorov <= _KOLMOGOROV else []
    bad += ["finite"] if not finite else []
    bad += ["largest"] if not 3.5 < largest < 9.5 else []
    bad += ["repeats"] if torch.equal(first, second) or torch.equal(first, other) else []
    worst = max(scores, key=lambda name: abs(scores[name]))
    told = f"KS {kolmogorov:.2f} (<= {_KOLMOGOROV}), worst {worst} {scores[worst]:+.1f} sd"
    told += f", largest {largest:.2f}" + (f"; off: {', '.join(bad)}" if bad else "")
    return Outcome(not bad, told, {"n": count, "sd": scores, "ks": kolmogorov, "max": largest})


def _correlation(one: Tensor, other: Tensor) -> float:
    return float((one * other).mean()) * math.sqrt(len(one))


def _kolmogorov(values: Tensor) -> float:
    ordered = values.sort().values
    below = 0.5 * torch.erfc(-ordered / math.sqrt(2))
    n = len(ordered)
    steps = torch.arange(1, n + 1, dtype=torch.float64, device=values.device) / n
    return float(torch.maximum((steps - below).max(), (below - (steps - 1 / n)).max()))


def _noise_grid(place: Place) -> Outcome:
    """What is released lies on the grid, and is as wide as promised."""
    count = 1 << (14 if place.tiny else 20)
    parameters = {
        "one": torch.zeros(count, device=place.device),
        "two": torch.zeros(7, 11, device=place.device),
    }
    clip_norm, multiplier = 0.37, 1.7
    total = empty_sum(parameters, clip_norm)
    released = noise.add_noise(total, multiplier, 1.0, SecureStream.fresh())
    std = multiplier * clip_norm
    step = noise.grid_step(std)
    values = released.values["one"].double()
    # fp32 holds every multiple below 2^24 steps.
    on_grid = values.abs() < step * 2**24
    steps = values[on_grid] / step
    off_grid = int((steps != steps.round()).sum())
    spread = (float(values.square().mean()) / std**2 - 1) * math.sqrt(count / 2)
    good = off_grid == 0 and abs(spread) <= _SIGMAS and released.noise_std == std
    return Outcome(
        good,
        f"{off_grid} of {count} off the grid, variance {spread:+.1f} sd",
        {"off_grid": off_grid, "variance_sd": spread, "step": step},
    )


def _kernels(place: Place) -> Outcome:
    """The kernels' own comparison with torch's operations."""
    name = "taciturn.engine.privacy.kernels"
    if importlib.util.find_spec(name) is None:
        raise SkippedError("there are none")
    module: Any = importlib.import_module(name)
    if not hasattr(module, "check"):
        raise SkippedError("they have no check of their own")
    if not place.on_gpu:
        raise SkippedError("they need a GPU")
    with warnings.catch_warnings(record=True) as told:
        # Why a kernel cannot be built is said by a warning.
        warnings.simplefilter("always")
        outcome = _judged(module.check(torch.device(place.device)))
    reasons = [str(each.message) for each in told if "triton" in str(each.message)]
    if reasons:
        outcome.figure = f"{reasons[0].rpartition('It says: ')[2][:150]}; {outcome.figure}"
        outcome.details["reasons"] = reasons
    return outcome


def _judged(result: Any) -> Outcome:
    """An outcome of whatever a check gives back; raising is how it fails."""
    if isinstance(result, bool):
        return Outcome(result, "agree" if result else "disagree")
    if isinstance(result, list | tuple):
        lines = [str(line) for line in result]
        # Torch's own operations serve then; on a GPU that is not what was built.
        absent = [line for line in lines if "no kernel" in line]
        return Outcome(not absent, "; ".join(absent or lines), {"lines": lines})
    if isinstance(result, dict):
        figures = {str(key): value for key, value in result.items()}
        numbers = {
            key: float(value)
            for key, value in figures.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        bad = [key for key, value in figures.items() if value is False]
        bad += [key for key, value in numbers.items() if not math.isfinite(value)]
        told = ", ".join(f"{key} {value:.0e}" for key, value in numbers.items())
        told = f"wrong: {', '.join(bad)}; {told}" if bad else told or "agree"
        return Outcome(not bad, told, {"figures": figures})
    return Outcome(True, "agree" if result is None else str(result)[:200])
