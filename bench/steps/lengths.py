"""Lengths of real pharmacovigilance sentences, from published quantiles; no text is needed.

Source: PHEE (Sun et al., "PHEE: A Dataset for Pharmacovigilance Event Extraction from Text", EMNLP
2022; MIT licence), train.jsonl, 2,898 sentences, as taciturn encodes them with the tokenizer of
taciturn/tiny-medical: bos, text, eos. Mean 36.8 tokens.
"""

from __future__ import annotations

import numpy as np

PERCENTS = (0, 1, 5, 10, 25, 50, 75, 90, 95, 98, 99, 100)
TOKENS = (9, 13, 17, 20, 25, 34, 45, 57, 65, 75, 85, 140)
MEAN_TOKENS = 36.8


def phee_lengths(count: int, seed: int) -> list[int]:
    """`count` lengths in random order that follow the quantiles as closely as so many can.

    They lie at the middles of `count` equal shares of the distribution, so that a small sample has
    its long records too and two seeds differ in the order only.
    """
    percents = (np.arange(count) + 0.5) * 100 / count
    lengths = np.interp(percents, PERCENTS, TOKENS).round().astype(int)
    return [int(length) for length in np.random.default_rng(seed).permutation(lengths)]
