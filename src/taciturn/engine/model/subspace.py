"""Public side information about a base model: what it writes, and where its activations live.

Under DP, noise grows with the number of trained parameters, so few are trained and they had better
be the right ones. Which input directions of a layer matter can be learned from text that the base
model writes itself, or from text that is public: no private row is involved. LoRA's A matrices
are fixed to those directions and only B is trained (LoRA-FA, Zhang et al. 2023; A from activations
as in EVA, Paischer et al. 2024; public side information, Li et al. 2022, AdaDPS).

Shapes: D input features, R directions, N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_SEQUENCES = 256
_TOKENS = 48
_MOST_ROWS = 512
_BATCH = 64
_EXTRA_DIRECTIONS = 8
_PASSES = 3
METHOD = (_SEQUENCES, _TOKENS, _BATCH, _EXTRA_DIRECTIONS, _PASSES)
"""Public constants that results follow from, besides weights, seed and ranks."""


@dataclass(frozen=True, slots=True)
class Subspace:
    """The leading directions of a layer's inputs.

    Attributes:
        directions_RD: orthonormal rows, most important first.
        energy_R: mean square of the inputs along each.
        mean_energy: mean square per input feature, over all directions.
    """

    directions_RD: Tensor
    energy_R: Tensor
    mean_energy: float


@torch.no_grad()
def own_text(model: Any, seed: int) -> Tensor:
    """Token ids that the base model writes from nothing; [sequences, tokens], public."""
    config = model.generation_config
    candidates = (config.bos_token_id, config.eos_token_id, 0)
    start = next(token for token in map(_first, candidates) if token is not None)
    devices = [model.device.index or 0] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        prompt = torch.full((_BATCH, 1), start, device=model.device)
        parts = [
            model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=_TOKENS - 1,
                max_new_tokens=_TOKENS - 1,
                pad_token_id=start,
            )
            for _ in range(_SEQUENCES // _BATCH)
        ]
    text: Tensor = torch.cat(parts)
    return text


def text_rows(records: Iterable[NDArray[np.int32]]) -> Tensor:
    """Public records as `own_text` is: one after the other, cut into rows; [rows, tokens].

    As many of them as make twice the text that a base model would write.
    """
    chunks: list[NDArray[np.int32]] = []
    length = 0
    for record in records:
        chunks.append(record)
        length += len(record)
        if length >= _MOST_ROWS * _TOKENS:
            break
    width = min(_TOKENS, length)
    count = min(_MOST_ROWS, length // width)
    if count > _BATCH:
        count -= count % _BATCH  # parts of equal size, which `unigram` weighs the same
    stream = np.concatenate(chunks)[: count * width].astype(np.int64)
    return torch.from_numpy(stream).reshape(count, width)


@torch.no_grad()
def activation_subspaces(
    model: Any, ranks: dict[str, int], text: Tensor, seed: int
) -> dict[str, Subspace]:
    """Leading directions of the inputs of the named layers on `text`.

    Block power iteration (Halko, Martinsson and Tropp 2011, section 4.5): memory is features x
    (rank + 8) per layer, never features x features. A layer that is never called has none.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = {name: model.get_submodule(name) for name in ranks}
    bases: dict[str, Tensor] = {}
    for number in range(_PASSES):
        products, squares, rows = _pass(model, layers, ranks, bases, generator, text)
        if number < _PASSES - 1:
            bases = {name: torch.linalg.qr(value)[0] for name, value in products.items()}
    return {
        name: _subspace(bases[name], products[name] / rows[name], squares[name] / rows[name], rank)
        for name, rank in ranks.items()
        if name in bases
    }


@torch.no_grad()
def unigram(model: Any, text: Tensor) -> Tensor:
    """Mean next-token distribution of the base model on `text`; [V], fp32."""
    total: Tensor | None = None
    for part in text.split(_BATCH):
        probabilities = model(input_ids=part, use_cache=False).logits.float().softmax(-1)
        mass = probabilities.mean(dim=(0, 1))
        total = mass if total is None else total + mass
    assert total is not None
    return total / len(text.split(_BATCH))


def _pass(
    model: Any,
    layers: dict[str, nn.Module],
    ranks: dict[str, int],
    bases: dict[str, Tensor],
    generator: torch.Generator,
    text: Tensor,
) -> tuple[dict[str, Tensor], dict[str, float], dict[str, int]]:
    """One sweep over the text: covariance times basis, for every layer."""
    products: dict[str, Tensor] = {}
    squares = dict.fromkeys(ranks, 0.0)
    rows = dict.fromkeys(ranks, 0)

    def watch(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            x_ND = inputs[0].detach().flatten(0, -2).float()
            if name not in bases:
                width = min(ranks[name] + _EXTRA_DIRECTIONS, x_ND.shape[1])
                noise = torch.randn(x_ND.shape[1], width, generator=generator)
                bases[name] = torch.linalg.qr(noise)[0].to(x_ND.device)
            product = x_ND.T @ (x_ND @ bases[name])
            products[name] = products[name] + product if name in products else product
            squares[name] += float(x_ND.square().sum()) / x_ND.shape[1]
            rows[name] += len(x_ND)

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        for part in text.split(_BATCH):
            model(input_ids=part, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return products, squares, rows


def _subspace(basis_DK: Tensor, product_DK: Tensor, mean_energy: float, rank: int) -> Subspace:
    energy_K, vectors_KK = torch.linalg.eigh(basis_DK.T @ product_DK)
    order = energy_K.argsort(descending=True)[:rank]
    directions = (basis_DK @ vectors_KK[:, order]).T.contiguous()
    return Subspace(directions, energy_K[order].clamp(min=0), mean_energy)


def _first(token: int | Sequence[int] | None) -> int | None:
    if isinstance(token, Sequence):
        return token[0] if token else None
    return token
