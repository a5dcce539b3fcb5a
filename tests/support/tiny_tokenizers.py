"""Tokenizers of every make that GGUF files know, trained on a few sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The patient was admitted with fever, and François Dupont was seen.",
    "It's 38.5 degrees: the patient's cough has lasted for 12345 days.",
    "patient 7 has a cough; patient 8 has a fever and a cough  today\n\nNext.",
    "The nurse gives 250 mg, then 500 mg; the doctor agrees, she'll see.",
] * 4
PROBES = [
    "The patient has a cough",
    " two  spaces and\nlines\n\nof 12345 mg",
    "She'll see: 38.5 degrees, naïve café, 漢字 and 🙂!",
    "x",
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_SIZE = 420


def _byte_level(*before: Any, use_regex: bool = False) -> Any:
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return last if not before else pre_tokenizers.Sequence([*before, last])


def _split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def byte_level(pre: Any, **model: Any) -> Tokenizer:
    """Return a BPE on bytes that cuts text by `pre`."""
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return tokenizer


def sentencepiece(normalizer: Any, pre: Any) -> Tokenizer:
    """Return a BPE on characters as converters make it of SentencePiece's: bytes for the rest."""
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer = normalizer, pre
    trainer = trainers.BpeTrainer(vocab_size=_SIZE - 259, show_progress=False)
    trained.train_from_iterator(TEXTS, trainer)
    rules = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *_BYTES, *rules["vocab"]]
    merges = [tuple(pair) for pair in rules["merges"]]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    return tokenizer


def unigram() -> Tokenizer:
    """Return a unigram tokenizer, as T5's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


_PREPEND = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
_REPLACE = normalizers.Replace(" ", "\u2581")

KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: byte_level(_byte_level(use_regex=True)),
    "smollm": lambda: byte_level(
        _byte_level(pre_tokenizers.Digits(individual_digits=True), use_regex=True)
    ),
    "llama-bpe": lambda: byte_level(_byte_level(_split(_LLAMA3)), ignore_merges=True),
    "qwen2": lambda: byte_level(_byte_level(_split(_LLAMA3.replace("{1,3}", "")))),
    "llama-spm": lambda: sentencepiece(
        None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ),
    "phi3-spm": lambda: sentencepiece(_PREPEND, None),
    "gemma-spm": lambda: sentencepiece(
        _REPLACE, pre_tokenizers.Split(" ", behavior="merged_with_previous")
    ),
    "unigram": unigram,
}


def make(kind: str, chat_template: str | None = CHATML, **roles: str) -> Any:
    """Return a tokenizer as transformers has it."""
    backend = KINDS[kind]()
    if backend.token_to_id("<s>") is None:
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        if kind != "qwen2":
            names["bos_token"] = "<|endoftext|>"
    else:
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names | roles)
    tokenizer.chat_template = chat_template
    return tokenizer
