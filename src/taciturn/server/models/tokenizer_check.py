"""A tokenizer's file, read as one: pieces of words and rules about them, and no room for rows.

The embedded model's has to say what the package's own says. Of other base models the gateway has
no copy; the worker, which has, compares there (`worker/base_files.py`). Here each part is looked
at: known fields, pieces that are short, no more of them than the base model has, and merges that
are made of nothing but these pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from taciturn.embedded import TINY_MEDICAL, model_path

_FIELDS = frozenset(
    {
        "version",
        "truncation",
        "padding",
        "added_tokens",
        "normalizer",
        "pre_tokenizer",
        "post_processor",
        "decoder",
        "model",
    }
)
_MODEL_FIELDS = frozenset(
    {
        "type",
        "dropout",
        "unk_token",
        "unk_id",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "fuse_unk",
        "byte_fallback",
        "ignore_merges",
        "max_input_chars_per_word",
        "vocab",
        "merges",
    }
)
_ADDED_FIELDS = frozenset(
    {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}
)
_PIECE_CHARS = 256  # the longest in use are runs of blanks
_ADDED_MOST = 4096  # besides the base model's declared vocabulary
_RULE_CHARS, _RULE_DEPTH = 500, 8  # patterns of pre-tokenizers
_CHARSMAP = re.compile(r"^[A-Za-z0-9+/]*={0,2}$")
_CUT = frozenset({"direction", "max_length", "strategy", "stride"})
_PAD = frozenset(
    {"strategy", "direction", "pad_to_multiple_of", "pad_id", "pad_type_id", "pad_token"}
)


def check_tokenizer(tokenizer: Any, base: str, vocabulary: int | None) -> None:
    """Raise ValueError unless `tokenizer` is one for this base model.

    Args:
        tokenizer: content of `tokenizer.json`.
        vocabulary: of the base model, as declared; None where it is not known.
    """
    _fields(tokenizer, _FIELDS)
    if base == TINY_MEDICAL and _essence(tokenizer) != _embedded():
        raise ValueError("another tokenizer than the base model's")
    pieces = _pieces(tokenizer["model"])
    added = tokenizer.get("added_tokens") or []
    for token in added:
        _fields(token, _ADDED_FIELDS)
        _piece(token["content"])
    if vocabulary is not None and len(pieces) + len(added) > vocabulary + _ADDED_MOST:
        raise ValueError("more pieces than the base model has")
    _settings(tokenizer.get("truncation"), _CUT)
    _settings(tokenizer.get("padding"), _PAD)
    for rule in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        _rule(tokenizer.get(rule), _RULE_DEPTH)


def _essence(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in tokenizer.items() if name not in ("truncation", "padding")
    }


@lru_cache(maxsize=1)
def _embedded() -> dict[str, Any]:
    return _essence(json.loads((model_path() / "tokenizer.json").read_text(encoding="utf-8")))


def _fields(value: Any, names: frozenset[str]) -> None:
    if not isinstance(value, dict) or not set(value) <= names:
        raise ValueError("a field that a tokenizer does not have")


def _pieces(model: Any) -> frozenset[str]:
    """The vocabulary of a model, which its merges are made of."""
    _fields(model, _MODEL_FIELDS)
    listed = model["vocab"]
    pieces = listed if isinstance(listed, dict) else [piece for piece, _ in listed]
    ids = listed.values() if isinstance(listed, dict) else [score for _, score in listed]
    if not all(isinstance(number, int | float) for number in ids):
        raise ValueError("a piece without a number")
    for piece in pieces:
        _piece(piece)
    vocabulary = frozenset(pieces)
    for merge in model.get("merges") or []:
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        if first not in vocabulary or second not in vocabulary:
            raise ValueError("a merge of something that is no piece")
    for name in set(model) - {"vocab", "merges"}:
        _rule(model[name], 1)
    return vocabulary


def _piece(text: Any) -> None:
    if not isinstance(text, str) or len(text) > _PIECE_CHARS:
        raise ValueError("a piece that is too long")


def _settings(value: Any, names: frozenset[str]) -> None:
    """Check how texts are cut or padded: words and widths."""
    if value is not None:
        _fields(value, names)
        _rule(value, 3)


def _rule(value: Any, depth: int) -> None:
    """A part of the pipeline: nested settings with short texts, such as patterns."""
    if depth < 0:
        raise ValueError("a rule that is too deep")
    if isinstance(value, dict):
        charsmap = value.get("precompiled_charsmap")
        if charsmap is not None and not (
            value.get("type") == "Precompiled" and _CHARSMAP.match(charsmap)
        ):
            raise ValueError("a table that is none")
        for name in value:
            _short(name)
        value = [part for name, part in value.items() if name != "precompiled_charsmap"]
    if isinstance(value, list):
        for part in value:
            _rule(part, depth - 1)
    elif isinstance(value, str):
        _short(value)


def _short(text: str) -> None:
    if len(text) > _RULE_CHARS:
        raise ValueError("a rule that is too long")
