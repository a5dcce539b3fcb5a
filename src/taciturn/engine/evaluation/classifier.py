"""Does synthetic text teach what real text would? A classifier trained on it, tested on real text.

Logistic regression on hashed n-grams: convex, so there is nothing to tune and no seed, and small
enough that what it learns comes from the text.

Shapes: N texts, D dimensions, L labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from taciturn.engine.evaluation.features import ngram_features
from taciturn.errors import DataError

_DIMENSIONS = 2048
_DECAY = 1e-3
_ROUNDS = 100
_SCALE = 10.0  # features have norm 1; larger ones need smaller weights for the same logits


@dataclass(frozen=True, slots=True, repr=False)
class TextClassifier:
    """Weights [D + 1, L] of a multinomial logistic regression, and its labels."""

    labels: tuple[str, ...]
    majority: str
    weights_DL: Tensor

    @classmethod
    def train(cls, texts: Sequence[str], labels: Sequence[str]) -> TextClassifier:
        """Fit to convergence; deterministic.

        Raises:
            DataError: fewer than two different labels.
        """
        counts = Counter(labels)
        if len(counts) < 2:
            raise DataError(
                f"the training text has {len(counts)} different label(s); a classifier needs at "
                "least 2: synthesize from one prompt per label"
            )
        names = tuple(sorted(counts))
        targets_N = torch.tensor([names.index(label) for label in labels])
        weights_DL = _fitted(_inputs(texts), targets_N, len(names))
        return cls(names, counts.most_common(1)[0][0], weights_DL)

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text."""
        return [self.labels[int(i)] for i in (_inputs(texts) @ self.weights_DL).argmax(1)]


@dataclass(frozen=True, slots=True)
class Downstream:
    """Accuracy on real text of a classifier trained on synthetic text.

    Attributes:
        accuracy: share of test records (of private ones: mean over units of each unit's share).
        majority_accuracy: the same for always guessing the commonest training label.
        macro_f1: mean over labels of the F1 score; None for private tests: it is not paid for.
        accuracy_std: standard deviation of the noise in both accuracies; 0 if exact.
        n_train: training texts.
    """

    accuracy: float
    majority_accuracy: float
    macro_f1: float | None
    accuracy_std: float
    n_train: int


def hits(predicted: Sequence[str], labels: Sequence[str]) -> Tensor:
    """1.0 where they agree; [N]."""
    return torch.tensor([float(a == b) for a, b in zip(predicted, labels, strict=True)])


def unit_means(values_N: Tensor, unit_of_N: Tensor) -> Tensor:
    """Mean over each unit's records; [U]. Units are numbered from 0 without gaps."""
    counts_U = torch.bincount(unit_of_N)
    return torch.bincount(unit_of_N, weights=values_N.double()) / counts_U


def macro_f1(predicted: Sequence[str], labels: Sequence[str]) -> float:
    """Mean F1 over the labels that occur in the test."""
    scores = []
    for name in sorted(set(labels)):
        both = sum(a == b == name for a, b in zip(predicted, labels, strict=True))
        either = sum(a == name for a in predicted) + sum(b == name for b in labels)
        scores.append(2 * both / either)
    return sum(scores) / len(scores)


def _inputs(texts: Sequence[str]) -> Tensor:
    features_ND = torch.from_numpy(ngram_features(texts, _DIMENSIONS)).float() * _SCALE
    return torch.hstack([features_ND, torch.ones(len(texts), 1)])


def _fitted(inputs_ND: Tensor, targets_N: Tensor, n_labels: int) -> Tensor:
    weights_DL = torch.zeros(inputs_ND.shape[1], n_labels, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_DL], max_iter=_ROUNDS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs_ND @ weights_DL, targets_N)
        loss = loss + _DECAY * weights_DL[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return weights_DL.detach()
