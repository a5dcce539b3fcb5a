"""A tokenizer as llama.cpp reads it: tokens, merges or scores, and how text is cut beforehand.

Read from the tokenizer's own description (tokenizer.json). What cannot be said in a GGUF file, such
as a rule for cutting text that llama.cpp does not know, is refused by name.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gguf import TokenType

from taciturn.errors import ModelError

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNLIKELY = -1e6  # of a token that no merge makes
_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Regular expression that text is cut by -> name that llama.cpp knows it by.
_CUTS = {_WORDS % "{1,3}": "llama-bpe", _WORDS % "": "qwen2", _TEKKEN: "tekken", _GPT4O: "gpt-4o"}
# Under these names llama.cpp takes a word that is a token as it is, without merging.
_WHOLE_WORDS = {"llama-bpe", "tekken"}


@dataclass(slots=True)
class Vocabulary:
    """Vocabulary and rules of a tokenizer.

    Attributes:
        fields: name of a method of the `gguf` package's writer, and what to call it with.
        ends: ids of the tokens that a text or a turn ends with.
        begins: the token that texts begin with is to be added.
        notes: differences that whoever serves the model has to know.
    """

    fields: list[tuple[str, Any]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    begins: bool = False
    notes: list[str] = field(default_factory=list)


def vocabulary(tokenizer: Any, rows: int, ends: Sequence[int]) -> Vocabulary:
    """Return what a GGUF file has to say of a tokenizer.

    Args:
        rows: tokens that the model has an embedding for.
        ends: ids of the tokens that the model may end with.

    Raises:
        ModelError: llama.cpp would cut text otherwise.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal(f"a {type(tokenizer).__name__} without a tokenizer.json")
    rules: dict[str, Any] = json.loads(backend.to_str())
    kind = rules["model"]["type"]
    result = Vocabulary(ends=list(ends))
    if kind == "Unigram":
        scores = _unigram(rules, result)
    elif kind == "BPE" and _is_sentencepiece(rules):
        scores = _sentencepiece(rules, result)
    elif kind == "BPE":
        scores = _byte_level(rules, result)
    else:
        raise _refusal(f"a tokenizer of type {kind}")
    _add_tokens(tokenizer, rules, rows, scores, result)
    _add_roles(tokenizer, result)
    return result


def _unigram(rules: Mapping[str, Any], result: Vocabulary) -> dict[str, float] | None:
    if rules["model"].get("byte_fallback"):
        raise _refusal("a unigram tokenizer with byte fallback")
    prefix = _space_prefix(rules)
    steps = _steps(rules["normalizer"], "normalizers")
    maps = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
    unknown = {s["type"] for s in steps} - {"Precompiled", "Replace", "Strip", "Prepend"}
    if unknown:
        raise _refusal(f"a unigram tokenizer that normalises by {', '.join(sorted(unknown))}")
    single = any(_pattern(step) in (" {2,}", "▁{2,}") for step in steps)
    result.fields += [
        ("add_tokenizer_model", "t5"),
        ("add_tokenizer_pre", "default"),
        ("add_add_space_prefix", prefix),
        ("add_remove_extra_whitespaces", single),
    ]
    if maps:
        result.fields.append(("add_precompiled_charsmap", base64.b64decode(maps[0])))
    return dict(rules["model"]["vocab"])


def _is_sentencepiece(rules: Mapping[str, Any]) -> bool:
    """True of BPE on characters, with a sign for spaces and bytes for what has no token."""
    return bool(rules["model"].get("byte_fallback"))


def _sentencepiece(rules: Mapping[str, Any], result: Vocabulary) -> dict[str, float] | None:
    """Add a BPE in SentencePiece's manner: what is merged first has the best score."""
    steps = _steps(rules["normalizer"], "normalizers")
    cuts = _steps(rules["pre_tokenizer"], "pretokenizers")
    signs = [step for step in steps if step["type"] == "Replace" and step["content"] == _SPACE]
    further = {step["type"] for step in steps} - {"Replace", "Prepend"}
    # Gemma cuts at spaces, of which none is left: they are replaced before.
    cutting = {step["type"] for step in cuts if _pattern(step) != " "} - {"Metaspace"}
    has_sign = signs or any(step["type"] == "Metaspace" for step in cuts)
    if further or cutting or not has_sign:
        names = ", ".join(sorted(further | cutting)) or "no sign for a space"
        raise _refusal(f"a tokenizer on characters with {names}")
    pairs = _pairs(rules)
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(pairs):
        scores.setdefault(left + right, -float(rank))
    result.fields += [
        ("add_tokenizer_model", "llama"),
        ("add_tokenizer_pre", "default"),
        ("add_add_space_prefix", _space_prefix(rules)),
        # Read by transformers and not by llama.cpp, which goes by the scores.
        ("add_token_merges", [f"{left} {right}" for left, right in pairs]),
    ]
    return scores


def _byte_level(rules: Mapping[str, Any], result: Vocabulary) -> dict[str, float] | None:
    """Add a BPE on bytes, as GPT-2's."""
    further = {step["type"] for step in _steps(rules["normalizer"], "normalizers")} - {"NFC"}
    if further:
        raise _refusal(f"a tokenizer that normalises by {', '.join(sorted(further))}")
    if rules["normalizer"] is not None:
        result.notes.append(
            "llama.cpp does not compose accented letters (Unicode NFC) as this tokenizer does: "
            "give it text that is composed"
        )
    pre = _cut_name(_steps(rules["pre_tokenizer"], "pretokenizers"))
    if rules["model"].get("ignore_merges") and pre not in _WHOLE_WORDS:
        raise _refusal(f"a tokenizer that cuts as {pre} and takes whole words without merging")
    result.fields += [
        ("add_tokenizer_model", "gpt2"),
        ("add_tokenizer_pre", pre),
        ("add_token_merges", [f"{left} {right}" for left, right in _pairs(rules)]),
    ]
    return None


def _cut_name(steps: list[dict[str, Any]]) -> str:
    """Return llama.cpp's name for how text is cut before it is merged."""
    kinds = [step["type"] for step in steps]
    last = steps[-1] if steps else {}
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        if kinds == ["ByteLevel"] and last.get("use_regex", True):
            return "gpt-2"
        digits = kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits")
        if digits and last.get("use_regex", True):
            return "smollm"
        cut = _pattern(steps[0]) if kinds == ["Split", "ByteLevel"] else None
        if cut in _CUTS and steps[0].get("behavior") == "Isolated" and not last.get("use_regex"):
            return _CUTS[cut]
    raise _refusal(f"a tokenizer that cuts text by {', '.join(kinds) or 'nothing'} in its own way")


def _add_tokens(
    tokenizer: Any,
    rules: Mapping[str, Any],
    rows: int,
    scores: Mapping[str, float] | None,
    result: Vocabulary,
) -> None:
    """Add each token by its id, with its kind; an embedding without a token gets an unused one."""
    texts = {number: text for text, number in tokenizer.get_vocab().items() if number < rows}
    added = tokenizer.added_tokens_decoder
    unknown = tokenizer.unk_token_id
    pieces = rules["model"].get("byte_fallback")
    tokens, kinds, values = [], [], []
    for number in range(rows):
        text = texts.get(number)
        kind = TokenType.NORMAL
        own = added.get(number)
        if text is None:
            text, kind = f"[PAD{number}]", TokenType.UNUSED
        elif pieces and _BYTE.fullmatch(text):
            kind = TokenType.BYTE
        elif scores is not None and number == unknown:
            kind = TokenType.UNKNOWN
        elif number in result.ends or (own is not None and own.special):
            kind = TokenType.CONTROL
        # Text that holds the sign for a space is made by merging; no text of a user holds it.
        elif own is not None and not (scores is not None and _SPACE in text):
            kind = TokenType.USER_DEFINED
        tokens.append(text)
        kinds.append(kind)
        values.append((scores or {}).get(text, _UNLIKELY if kind == TokenType.NORMAL else 0.0))
    result.fields += [("add_token_list", tokens), ("add_token_types", kinds)]
    if scores is not None:
        result.fields.append(("add_token_scores", values))


def _add_roles(tokenizer: Any, result: Vocabulary) -> None:
    """Add beginnings, ends and the chat template."""
    template = tokenizer.chat_template
    result.begins = tokenizer.bos_token_id is not None
    if template:
        result.begins = result.begins and _opens_with_start(tokenizer)
    end = tokenizer.eos_token_id
    further_ends = [number for number in result.ends if number != end]
    for name, number in (
        ("add_bos_token_id", tokenizer.bos_token_id),
        ("add_eos_token_id", end),
        ("add_eot_token_id", further_ends[0] if further_ends else None),
        ("add_unk_token_id", tokenizer.unk_token_id),
        ("add_pad_token_id", tokenizer.pad_token_id),
    ):
        if number is not None:
            result.fields.append((name, number))
    if len(further_ends) > 1:
        texts = tokenizer.convert_ids_to_tokens(further_ends[1:])
        result.notes.append(
            f"a GGUF file names two tokens that end a text; give {', '.join(texts)} as stop words"
        )
    result.fields += [("add_add_bos_token", result.begins), ("add_add_eos_token", False)]
    if isinstance(template, str):
        result.fields.append(("add_chat_template", template))
    elif template:
        templates = [{"name": name, "template": text} for name, text in template.items()]
        result.fields.append(("add_chat_template", templates))


def _opens_with_start(tokenizer: Any) -> bool:
    """True if what the chat template writes begins with the token for a beginning."""
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except Exception:  # a template of others raises what it likes; one without a default, too
        return True
    return str(text).startswith(tokenizer.bos_token)


def _space_prefix(rules: Mapping[str, Any]) -> bool:
    """True if a text gets a space before it."""
    steps = [
        *_steps(rules["normalizer"], "normalizers"),
        *_steps(rules["pre_tokenizer"], "pretokenizers"),
    ]
    return any(
        step["type"] == "Prepend"
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _steps(rule: Any, name: str) -> list[dict[str, Any]]:
    """Return the steps of a sequence, or the one that stands alone."""
    return [] if rule is None else list(_flat(rule, name))


def _flat(rule: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    if rule["type"] != "Sequence":
        yield rule
    for step in rule.get(name, ()):
        yield from _flat(step, name)


def _pattern(step: Mapping[str, Any]) -> str | None:
    pattern = step.get("pattern")
    return None if pattern is None else pattern.get("Regex", pattern.get("String"))


def _pairs(rules: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges: list[str | list[str]] = rules["model"]["merges"]
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    return [(left, right) for left, right in pairs]


def _refusal(what: str) -> ModelError:
    return ModelError(
        f"llama.cpp has no counterpart to {what}, so a GGUF file would read text otherwise than "
        "the model was fitted on it; export it merged"
    )
