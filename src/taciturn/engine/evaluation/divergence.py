"""Divergence of two sets of texts: MAUVE on clusters of their features.

Pillutla et al. 2021, "MAUVE: Measuring the Gap Between Neural Text and Human Text", section 3.
Figures are comparable between models on the same features and clusters, and with nothing else.

Shapes: N texts, D dimensions, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SCALE = 5.0  # the paper's c
_POINTS = 101
_ROUNDS = 30


def codebook(features_ND: Floats, n_clusters: int, seed: int = 0) -> Floats:
    """Centres [K, D] of k-means (Lloyd, k-means++ start); K is at most the number of texts."""
    rng = np.random.default_rng(seed)
    centres_KD = _start(features_ND, min(n_clusters, len(features_ND)), rng)
    for _ in range(_ROUNDS):
        nearest_N = assign(features_ND, centres_KD)
        for cluster in range(len(centres_KD)):
            members = features_ND[nearest_N == cluster]
            if len(members):
                centres_KD[cluster] = members.mean(0)
    return centres_KD


def assign(features_ND: Floats, centres_KD: Floats) -> NDArray[np.int64]:
    """The nearest centre of each text; [N]."""
    distances_NK = (centres_KD**2).sum(1) - 2 * features_ND @ centres_KD.T
    nearest_N: NDArray[np.int64] = np.argmin(distances_NK, axis=1).astype(np.int64)
    return nearest_N


def shares(clusters_N: NDArray[np.int64], n_clusters: int) -> Floats:
    """Share of the texts in each cluster; [K]."""
    return np.bincount(clusters_N, minlength=n_clusters) / max(1, len(clusters_N))


def mauve(reference_K: Sequence[float] | Floats, model_K: Sequence[float] | Floats) -> float:
    """Area under the divergence curve of two distributions, in (0, 1]; 1 if they are the same."""
    p_K, q_K = (np.asarray(shares, dtype=np.float64) for shares in (reference_K, model_K))
    curve = [(1.0, 0.0)]
    for weight in np.linspace(1e-6, 1 - 1e-6, _POINTS):
        mixture_K = weight * p_K + (1 - weight) * q_K
        gaps = _divergence(q_K, mixture_K), _divergence(p_K, mixture_K)
        curve.append((float(np.exp(-_SCALE * gaps[0])), float(np.exp(-_SCALE * gaps[1]))))
    xs, ys = np.array(sorted([*curve, (0.0, 1.0)], key=lambda point: (point[0], -point[1]))).T
    return float(np.clip(np.trapezoid(ys, xs), 0.0, 1.0))


def _divergence(p_K: Floats, q_K: Floats) -> float:
    """Kullback-Leibler divergence in nats; q covers p."""
    present_K = p_K > 0
    return float((p_K[present_K] * np.log(p_K[present_K] / q_K[present_K])).sum())


def _start(features_ND: Floats, n_clusters: int, rng: np.random.Generator) -> Floats:
    centres = [features_ND[rng.integers(len(features_ND))]]
    while len(centres) < n_clusters:
        distances_N = np.min([((features_ND - centre) ** 2).sum(1) for centre in centres], axis=0)
        total = distances_N.sum()
        if total <= 0:
            break
        centres.append(features_ND[rng.choice(len(features_ND), p=distances_N / total)])
    return np.array(centres)
