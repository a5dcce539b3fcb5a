"""What is kept of the embedded model is what it would be worked out to be.

PYTHONPATH=src:tests python tests/engine/model/test_side_information.py    writes it
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.ranks import in_processes, results
from taciturn.embedded import TINY_MEDICAL
from taciturn.engine.model import lora
from taciturn.engine.model.load import load_base
from taciturn.engine.model.sharding import shard
from taciturn.engine.model.side_information import (
    description,
    kept_side_information,
    path,
    tensors,
)
from taciturn.engine.model.subspace import activation_subspaces, own_text, unigram
from taciturn.engine.training.processes import all_processes
from taciturn.local.estimate import public_facts
from taciturn.planning.plan import adapter_plan
from taciturn.spec import FitSpec

SEED = 0


def base() -> tuple[Any, dict[str, int]]:
    """The embedded model, and the ranks that an automatic fit gives its layers."""
    spec = FitSpec(target_epsilon=3, device="cpu")
    loaded = load_base(TINY_MEDICAL, spec)
    choice = adapter_plan(spec, public_facts(loaded, 1200))
    assert choice.fixed_a
    return loaded.model, lora._ranks(loaded.model, choice)


def worked_out() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    model, ranks = base()
    text = own_text(model, SEED)
    found = activation_subspaces(model, ranks, text, SEED)
    return tensors(found, unigram(model, text)), description(model, ranks, SEED)


@pytest.mark.thorough
def test_it_is_what_would_be_worked_out() -> None:
    """Up to rounding, which is another on other processors; single vectors may turn round."""
    expected, _ = worked_out()
    kept = load_file(path())
    assert kept.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith(".directions_RD"):
            # The plane of all but the last directions, whatever their signs and order.
            cosines = torch.linalg.svdvals(kept[name] @ value.T)
            assert cosines[:-1].min() > 0.98, name
        else:
            torch.testing.assert_close(kept[name], value, rtol=0.02, atol=1e-6)


def test_it_is_kept_for_these_weights_ranks_and_seed_alone() -> None:
    model, ranks = base()
    kept = kept_side_information(model, ranks, SEED)
    assert kept is not None
    subspaces, frequencies = kept
    assert {name: len(one.directions_RD) for name, one in subspaces.items()} == ranks
    assert float(frequencies.sum()) == pytest.approx(1, abs=1e-4)
    fewer = dict(list(ranks.items())[1:])
    assert kept_side_information(model, fewer, SEED) is None
    assert kept_side_information(model, dict.fromkeys(ranks, 2), SEED) is None
    assert kept_side_information(model, ranks, SEED + 1) is None
    with torch.no_grad():
        weight = next(model.parameters())
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert kept_side_information(model, ranks, SEED) is None
    model.to(torch.bfloat16)
    assert kept_side_information(model, ranks, SEED) is None


def of_a_shard() -> bool:
    model, ranks = base()
    with all_processes(torch.device("cpu")) as processes:
        shard(model, torch.device("cpu"), processes.size)
        return kept_side_information(model, ranks, SEED) is None


def test_it_is_not_asked_for_by_a_model_that_is_spread_over_processes() -> None:
    assert results(in_processes(2, of_a_shard)) == [True, True]


def test_an_automatic_fit_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "own_text", None)  # not called
    spec = FitSpec(target_epsilon=3, device="cpu")
    loaded = load_base(TINY_MEDICAL, spec)
    lora.attach(loaded.model, adapter_plan(spec, public_facts(loaded, 1200)))


if __name__ == "__main__":
    content, metadata = worked_out()
    save_file(content, path(), metadata)
