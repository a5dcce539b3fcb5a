"""What llama.cpp would cut otherwise is refused by name; ends and beginnings are those of fits."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers

from support.tiny_tokenizers import KINDS, make
from taciturn.errors import ModelError
from taciturn.local.export.vocabulary import vocabulary


def fields(tokenizer: Any, ends: tuple[int, ...] = ()) -> dict[str, Any]:
    return dict(vocabulary(tokenizer, len(tokenizer), ends).fields)


@pytest.mark.parametrize(
    ("kind", "model", "pre"),
    [
        ("gpt-2", "gpt2", "gpt-2"),
        ("smollm", "gpt2", "smollm"),
        ("llama-bpe", "gpt2", "llama-bpe"),
        ("qwen2", "gpt2", "qwen2"),
        ("llama-spm", "llama", "default"),
        ("gemma-spm", "llama", "default"),
        ("unigram", "t5", "default"),
    ],
)
def test_kind_is_told_by_the_rules(kind: str, model: str, pre: str) -> None:
    said = fields(make(kind))
    assert (said["add_tokenizer_model"], said["add_tokenizer_pre"]) == (model, pre)


def test_spaces_before_a_text() -> None:
    spaces = {kind: fields(make(kind)).get("add_add_space_prefix") for kind in KINDS}
    assert spaces["phi3-spm"]
    assert spaces["llama-spm"]
    assert spaces["gemma-spm"] is False


def test_beginning_is_added_where_the_chat_template_begins_with_it() -> None:
    assert fields(make("gpt-2", None))["add_add_bos_token"]
    assert not fields(make("gpt-2"))["add_add_bos_token"]
    begins = make("gpt-2", "{{ bos_token }}{{ messages[0]['content'] }}")
    assert fields(begins)["add_add_bos_token"]
    assert not fields(make("qwen2", None))["add_add_bos_token"]  # it has none


def test_ends() -> None:
    tokenizer = make("gpt-2")
    ids = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>", "<|im_start|>"])
    result = vocabulary(tokenizer, len(tokenizer), ids)
    said = dict(result.fields)
    assert (said["add_eos_token_id"], said["add_eot_token_id"]) == (ids[0], ids[1])
    assert "<|im_start|> as stop words" in result.notes[-1]


def test_templates_by_name() -> None:
    tokenizer = make("gpt-2", {"default": "a", "tool_use": "b"})  # type: ignore[arg-type]
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    assert fields(tokenizer)["add_chat_template"] == named


def test_composing_is_said() -> None:
    tokenizer = make("qwen2")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert "does not compose" in vocabulary(tokenizer, len(tokenizer), []).notes[0]


@pytest.mark.parametrize(
    ("kind", "part", "rule", "message"),
    [
        ("gpt-2", "pre_tokenizer", pre_tokenizers.Whitespace(), "cuts text by Whitespace"),
        ("gpt-2", "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True), "ByteLevel"),
        (
            "qwen2",
            "pre_tokenizer",
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex("a"), behavior="isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            ),
            "cuts text by Split, ByteLevel",
        ),
        ("gpt-2", "normalizer", normalizers.Lowercase(), "normalises by Lowercase"),
        ("llama-spm", "normalizer", normalizers.Lowercase(), "Lowercase"),
        ("unigram", "normalizer", normalizers.Lowercase(), "normalises by Lowercase"),
    ],
)
def test_what_llama_cpp_does_not_know_is_refused(
    kind: str, part: str, rule: Any, message: str
) -> None:
    tokenizer = make(kind)
    setattr(tokenizer.backend_tokenizer, part, rule)
    with pytest.raises(ModelError, match=message):
        fields(tokenizer)


def test_tokenizer_without_a_description_is_refused() -> None:
    with pytest.raises(ModelError, match=r"without a tokenizer\.json"):
        vocabulary(object(), 3, [])
