"""Side information of the embedded model, worked out once and kept in the package.

What `subspace` learns of a base model follows from its weights, the seed and the ranks, and takes
as long as a hundred steps of a small fit. For the embedded model and the ranks that an automatic
fit chooses, it lies beside the model's folder. `tests/engine/model/test_side_information.py` works
it out again and, run as a program, writes the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from taciturn.embedded import model_path
from taciturn.engine.model import subspace
from taciturn.engine.model.sharding import is_sharded
from taciturn.engine.model.subspace import Subspace

FILE = "side_information.safetensors"
FREQUENCIES = "frequencies"
_PARTS = ("directions_RD", "energy_R", "mean_energy")
_TYPES = {"mean_energy": torch.float64}  # a number of Python's


def kept_side_information(
    model: Any, ranks: Mapping[str, int], seed: int
) -> tuple[dict[str, Subspace], Tensor] | None:
    """Subspaces and frequencies of tokens, if they are kept for these weights, ranks and seed.

    None for every other model: one that differs in a single bit of its weights, one in another
    precision, one whose layers get other ranks, or one that is spread over processes.
    """
    if is_sharded(model):
        return None
    with safe_open(path(), framework="pt") as file:
        metadata = file.metadata()
        # The count first: to digest a large model takes seconds.
        if metadata["parameters"] != _count(model) or metadata != description(model, ranks, seed):
            return None
        subspaces = {name: _read(file, name, model.device) for name in ranks}
        return subspaces, file.get_tensor(FREQUENCIES).to(model.device)


def description(model: Any, ranks: Mapping[str, int], seed: int) -> dict[str, str]:
    """Facts that side information follows from, as the file's metadata says them."""
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(content.tobytes())
    return {
        "parameters": _count(model),
        "weights_sha256": digest.hexdigest(),
        "ranks": str(sorted(ranks.items())),
        "seed": str(seed),
        "method": str(subspace.METHOD),
    }


def tensors(subspaces: Mapping[str, Subspace], frequencies: Tensor) -> dict[str, Tensor]:
    """All that is kept, by the names of the file."""
    content = {
        f"{name}.{part}": torch.as_tensor(getattr(one, part), dtype=_TYPES.get(part)).contiguous()
        for name, one in subspaces.items()
        for part in _PARTS
    }
    return {**content, FREQUENCIES: frequencies}


def path() -> Path:
    """The file, beside the folder of the embedded model."""
    return model_path().with_name(FILE)


def _read(file: Any, name: str, device: torch.device) -> Subspace:
    directions, energy, mean = (file.get_tensor(f"{name}.{part}") for part in _PARTS)
    return Subspace(directions.to(device), energy.to(device), float(mean))


def _count(model: Any) -> str:
    return str(sum(value.numel() for value in model.parameters()))
