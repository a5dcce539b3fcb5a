"""The classifier learns what is there, and says when there is nothing to learn."""

from __future__ import annotations

import pytest
import torch

from taciturn.engine.evaluation.classifier import TextClassifier, hits, macro_f1, unit_means
from taciturn.errors import DataError

TRAIN = [f"cough and fever number {i}" for i in range(20)] + [
    f"the court ruled {i}" for i in range(20)
]
LABELS = ["ill"] * 20 + ["law"] * 20


def test_it_learns() -> None:
    model = TextClassifier.train(TRAIN, LABELS)
    assert model.predict(["a bad cough", "the court"]) == ["ill", "law"]
    again = TextClassifier.train(TRAIN, LABELS)
    assert torch.equal(model.weights_DL, again.weights_DL)


def test_one_label_is_too_few() -> None:
    with pytest.raises(DataError, match="at least 2"):
        TextClassifier.train(["a", "b"], ["x", "x"])


def test_scores() -> None:
    assert hits(["a", "b"], ["a", "a"]).tolist() == [1, 0]
    assert unit_means(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1])).tolist() == [0.5, 1.0]
    assert macro_f1(["a", "b", "a"], ["a", "b", "b"]) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert macro_f1(["z"], ["a"]) == 0
