"""Scores of units against literal implementations; units of several records are units."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from taciturn.data.tokens.store import TokenizedDataset
from taciturn.data.tokens.tokenize import prepare
from taciturn.engine.auditing import membership
from taciturn.engine.auditing.membership import (
    attacked,
    check_apart,
    control_scores,
    evidence,
    min_k,
    scores_of,
)
from taciturn.engine.evaluation.likelihood import unit_sums
from taciturn.engine.model.load import LoadedModel, load_base
from taciturn.errors import DataError
from taciturn.spec import DataSpec, PerformanceSpec

MARK = "zyxwvut"
TEXTS = [
    "A cough.",
    "The patient has a long and unusual cough since last May, and takes no drug at all.",
    "No.",
    "Fever, too. Chest X-ray normal, blood pressure 130/80, heart rate 72.",
    "Gout.",
]
UNITS = ["a", "b", "a", "c", "b"]


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> LoadedModel:
    return load_base(str(tiny_llama), PerformanceSpec())


def dataset(
    base: LoadedModel, folder: Path, texts: list[str], units: list[str]
) -> TokenizedDataset:
    frame = pd.DataFrame({"unit": units, "text": texts})
    spec = DataSpec(text_field="text", privacy_unit="unit")
    return prepare(frame, spec, base.tokenizer, 100, folder, 0)


def min_k_plus_plus(logits_TV: Tensor, ids_T: Tensor, ratio: float) -> float:
    """The authors' own lines, in double precision."""
    input_ids = ids_T[1:].unsqueeze(-1)
    probs = torch.softmax(logits_TV[:-1], dim=-1)
    log_probs = torch.log_softmax(logits_TV[:-1], dim=-1)
    token_log_probs = log_probs.gather(dim=-1, index=input_ids).squeeze(-1)
    mu = (probs * log_probs).sum(-1)
    sigma = (probs * torch.square(log_probs)).sum(-1) - torch.square(mu)
    mink_plus = ((token_log_probs - mu) / sigma.sqrt()).numpy()
    k_length = max(1, int(len(mink_plus) * ratio))
    return float(np.mean(np.sort(mink_plus)[:k_length]))


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_units_against_literal_implementations(
    base: LoadedModel, tmp_path: Path, share: float
) -> None:
    data = dataset(base, tmp_path / "data", TEXTS, UNITS)
    found = evidence(base.model, data, 100, share)
    for unit in range(data.n_units):
        losses, ranks = [], []
        for record in data.records(unit):
            ids = torch.tensor(record.input_ids.astype("int64"))
            logits = base.model(ids[None]).logits[0].detach().double()
            rows = logits[:-1].log_softmax(-1)
            losses.append(float(rows.gather(1, ids[1:, None]).mean()))
            ranks.append(min_k_plus_plus(logits, ids, share))
        assert found.log_p_U[unit] == pytest.approx(np.mean(losses), rel=1e-4)
        assert found.min_k_U[unit] == pytest.approx(np.mean(ranks), rel=1e-3)


def test_a_unit_counts_as_one_however_many_records(base: LoadedModel, tmp_path: Path) -> None:
    alone = evidence(base.model, dataset(base, tmp_path / "1", TEXTS[:1], ["a"]), 100, 0.2)
    repeated = evidence(
        base.model, dataset(base, tmp_path / "2", TEXTS[:1] * 5, ["a"] * 5), 100, 0.2
    )
    assert repeated.log_p_U == pytest.approx(alone.log_p_U)
    assert repeated.min_k_U == pytest.approx(alone.min_k_U)


def test_microbatches_and_parts_of_a_unit_do_not_matter(base: LoadedModel, tmp_path: Path) -> None:
    """A unit larger than a microbatch comes in parts; Min-K%++ is still each record's own."""
    data = dataset(base, tmp_path / "data", TEXTS * 3, ["a"] * 10 + ["b"] * 5)

    def score(loss: object, batch: object) -> Tensor:
        return membership._scored(loss, batch, 0.2)  # type: ignore[arg-type]

    whole, split = (unit_sums(base.model, data, 100, score, size) for size in (4096, 16))
    torch.testing.assert_close(whole, split, rtol=1e-4, atol=1e-4)


def test_the_lowest_share_at_least_one() -> None:
    values = torch.tensor([3.0, -1.0, 2.0, -2.0, 0.0])
    assert min_k(values, 0.1) == -2
    assert min_k(values, 0.4) == -1.5
    assert min_k(values, 1.0) == pytest.approx(0.4)


def test_units_without_text_to_predict_are_left_out(base: LoadedModel, tmp_path: Path) -> None:
    """A question as long as what is kept of a record leaves no token of the answer."""
    frame = pd.DataFrame({"q": ["A long question indeed", "Q"], "a": ["yes", "no"]})
    spec = DataSpec(question_field="q", answer_field="a")
    data = prepare(frame, spec, base.tokenizer, 4, tmp_path / "data", 0)
    found = evidence(base.model, data, 4, 0.2)
    assert np.isnan(found.log_p_U).tolist() == [True, False]
    scores = scores_of(found, found)
    assert scores["ratio"][1] == 0
    many = {name: np.append(np.arange(12.0), np.nan) for name in control_scores(found)}
    (loss, _) = attacked(many, many, "base", 0.95, None)
    assert loss.roc.auc == 0.5


def test_a_unit_without_scores_is_null_in_json() -> None:
    scores = pd.DataFrame({"member": [True, False], "loss": [-1.5, np.nan]})
    found = membership.Membership((), 1, 0, 0.95, "no guarantee", scores)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["scores"] == [
        {"member": True, "loss": -1.5},
        {"member": False, "loss": None},
    ]


def test_higher_scores_are_members(base: LoadedModel, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    members = {"loss": rng.normal(3, 1, 40)}
    others = {"loss": rng.normal(0, 1, 200)}
    (result,) = attacked(members, others, "fitted", 0.95, lambda fpr: 2 * fpr)  # type: ignore[arg-type]
    assert result.roc.auc > 0.95
    rare, common = result.roc.points
    assert rare.tpr is None
    assert (common.promised_tpr, rare.promised_tpr) == (0.02, 0.002)


def test_the_same_units_on_both_sides_are_refused(base: LoadedModel, tmp_path: Path) -> None:
    texts = [f"{MARK} {number}" for number in range(6)]
    one = dataset(base, tmp_path / "1", texts, list("abcdef"))
    reordered = dataset(base, tmp_path / "2", texts[::-1], list("abcdef"))
    with pytest.raises(DataError, match="word for word") as caught:
        check_apart(one, reordered)
    assert MARK not in str(caught.value)
    few = dataset(base, tmp_path / "3", [*texts[:2], "x", "y", "z"], list("abcde"))
    check_apart(one, few)
