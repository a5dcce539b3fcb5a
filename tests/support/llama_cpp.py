"""llama.cpp, through llama-cpp-python, where that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray


class Reader:
    """A GGUF file as llama.cpp reads it."""

    def __init__(self, path: Path, context: int = 256) -> None:
        llama_cpp = pytest.importorskip(
            "llama_cpp", reason="llama-cpp-python is not installed: llama.cpp was not asked"
        )
        self._model = llama_cpp.Llama(
            str(path), n_ctx=context, logits_all=True, verbose=False, n_threads=1, n_gpu_layers=0
        )

    def tokens(self, text: str, *, special: bool = False) -> list[int]:
        """Return the tokens of a text, without a beginning."""
        tokens = self._model.tokenize(text.encode(), add_bos=False, special=special)
        return [int(token) for token in tokens]

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits after each token, [T, V]."""
        self._model.reset()
        self._model.eval(list(tokens))
        return np.array(self._model.scores[: len(tokens)], dtype=np.float32)

    @property
    def end(self) -> int:
        """Return the token that it ends with."""
        return int(self._model.token_eos())
