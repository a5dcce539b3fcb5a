"""No text becomes a special token, whatever kind of tokenizer reads it."""

from __future__ import annotations

import string
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from taciturn.data.tokens.plain import mark_for, marked_text, plain_tokens, special_tokens
from taciturn.errors import RowError

ENDS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LETTERS = "▁<>/|_" + string.ascii_letters
PIECES = ["<unk>", "<s>", "</s>", *LETTERS]


def unigram() -> Any:
    """As SentencePiece makes them: `<s>` is a word of the model's, too."""
    scores = [(piece, 0.0 if len(piece) > 1 else -3.0) for piece in PIECES]
    made = Tokenizer(models.Unigram(scores, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, **ENDS)


def bytes_behind() -> Any:
    """As Llama 2's: a blank put before, and bytes for what has no token."""
    words = [*PIECES[:3], *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, **ENDS)


def whole_words() -> Any:
    vocabulary = {word: number for number, word in enumerate([*PIECES[:3], "a", "b"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, **ENDS)


@pytest.fixture(scope="module", params=["embedded", "unigram", "bytes_behind", "whole_words"])
def tokenizer(request: pytest.FixtureRequest, tiny_medical: Path) -> Any:
    makers = {"unigram": unigram, "bytes_behind": bytes_behind, "whole_words": whole_words}
    if request.param in makers:
        return makers[request.param]()
    found = AutoTokenizer.from_pretrained(tiny_medical)
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return found


TEXTS = st.lists(
    st.sampled_from(["a", " ", "<s>", "</s>", "<pad>", "<|im_end|>", "<", "s>", "é", "\ue000"])
).map("".join)


@settings(max_examples=40)
@given(TEXTS)
def test_no_text_becomes_a_special_token(tokenizer: Any, text: str) -> None:
    special = special_tokens(tokenizer)
    assert {"<s>", "</s>"} <= set(special)
    assert "<unk>" not in special
    (ids,) = plain_tokens(tokenizer, [text])
    assert set(ids).isdisjoint(special.values())


@settings(max_examples=40)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_a_text_is_read_as_it_is_alone(tokenizer: Any, texts: list[str]) -> None:
    assert plain_tokens(tokenizer, texts) == [plain_tokens(tokenizer, [t])[0] for t in texts]


@settings(max_examples=40)
@given(st.text(st.sampled_from("ab<>/s |é\n\ue000"), max_size=20))
def test_other_text_is_read_as_a_prompt_is(tokenizer: Any, text: str) -> None:
    if not any(token in text for token in special_tokens(tokenizer)):
        asked = tokenizer([text], add_special_tokens=False)["input_ids"]
        assert plain_tokens(tokenizer, [text]) == asked


@pytest.mark.parametrize("make", [unigram, bytes_behind])
def test_nothing_of_it_is_lost(make: Any) -> None:
    tokenizer = make()
    text = "a <s>b</s> c<s>"
    (ids,) = plain_tokens(tokenizer, [text])
    assert tokenizer.decode(ids) == text


def test_nothing_is_lost_to_the_tokenizers_that_ship(tiny_medical: Path, shared: Path) -> None:
    text = "<html><s>struck</s></html> \ue000 </s>"
    for folder in (tiny_medical, shared / "base-model"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        (ids,) = plain_tokens(tokenizer, [text])
        assert tokenizer.decode(ids) == text
        assert tokenizer("<s>", add_special_tokens=False)["input_ids"] == [1], "of a prompt, it is"


def test_a_special_token_of_one_character_is_left_out() -> None:
    tokenizer = unigram()
    tokenizer.add_special_tokens({"pad_token": "|"})
    (ids,) = plain_tokens(tokenizer, ["a|b"])
    assert tokenizer.pad_token_id not in ids
    assert tokenizer.decode(ids) == "ab"


def test_a_case_of_two_characters_ends() -> None:
    assert marked_text("a <İ> b", {"<i̇>": 7}, "|") == "a <İ> b"
    assert marked_text("<I><<s><S>", {"<i>": 7, "<s>": 8}, "|") == "<|I><<|s><|S>"


def test_thousands_of_special_tokens_take_no_time() -> None:
    special = {f"<unused{n}>": n for n in range(6000)}
    started = time.monotonic()
    for _ in range(20):
        marked_text("a <b>note</b> of <unused7>" * 100, special, "|")
    assert time.monotonic() - started < 5


def test_a_mark_is_in_no_text() -> None:
    assert mark_for(["a", "\ue000\ue002"]) == "\ue001"
    with pytest.raises(RowError, match="private use"):
        mark_for("".join(map(chr, range(0xE000, 0xF900))))
