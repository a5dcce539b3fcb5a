"""llama.cpp, through llama-cpp-python or cyllama, whichever is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray


class Reader:
    """A GGUF file as llama.cpp reads it."""

    def __init__(self, path: Path, context: int = 256) -> None:
        if importlib.util.find_spec("llama_cpp") is not None:
            self._of_llama_cpp_python(path, context)
        elif importlib.util.find_spec("cyllama") is not None:
            self._of_cyllama(path, context)
        else:
            pytest.skip("neither llama-cpp-python nor cyllama is installed")

    def tokens(self, text: str, special: bool = False) -> list[int]:
        """Return the tokens of a text, without a beginning."""
        return list(map(int, self._tokens(text, special)))

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits after each token, [T, V]."""
        return np.asarray(self._logits(list(tokens)), dtype=np.float32)

    def _of_llama_cpp_python(self, path: Path, context: int) -> None:
        from llama_cpp import Llama

        self.kept: Any = Llama(
            str(path), n_ctx=context, logits_all=True, verbose=False, n_threads=1, n_gpu_layers=0
        )

        def logits(tokens: list[int]) -> Any:
            self.kept.reset()
            self.kept.eval(tokens)
            return self.kept.scores[: len(tokens)].copy()

        self._logits = logits
        self._tokens = lambda text, special: self.kept.tokenize(
            text.encode(), add_bos=False, special=special
        )
        self.ends = lambda token: token in (self.kept.token_eos(),)
        self.add_bos = bool(self.kept.metadata.get("tokenizer.ggml.add_bos_token") == "true")

    def _of_cyllama(self, path: Path, context: int) -> None:
        from cyllama.llama import llama_cpp as cy

        cy.disable_logging() if hasattr(cy, "disable_logging") else None
        class Model(cy.LlamaModel):
            @property
            def n_vocab(self): return self.get_vocab().n_vocab

        self.kept = Model(str(path), verbose=False)
        vocabulary = self.kept.get_vocab()

        def logits(tokens: list[int]) -> Any:
            settings = cy.LlamaContextParams()
            settings.n_ctx, settings.n_threads, settings.n_threads_batch = context, 1, 1
            state = cy.LlamaContext(self.kept, settings, verbose=False)
            batch = cy.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
            batch.set_batch(tokens, n_past=0, logits_all=True)
            state.decode(batch)
            return [state.get_logits_ith(number) for number in range(len(tokens))]

        self._logits = logits
        self._tokens = lambda text, special: vocabulary.tokenize(text, False, special)
        self.ends = vocabulary.is_eog
        self.add_bos = bool(vocabulary.get_add_bos())
