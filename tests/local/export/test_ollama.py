"""Ollama's template writes what the chat template writes, or there is none."""

from __future__ import annotations

from typing import Any

import pytest

from support.tiny_tokenizers import CHATML, make
from taciturn.local.export.ollama import modelfile, turns_of

ABOUT: dict[str, str | float] = {"policy": 'DP """', "certificate_sha256": "ab"}
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\\n' "
    "+ m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
# The first turn of a user is written otherwise than the others.
FIRST = CHATML.replace(
    "{{ '<|im_start|>'", "{% if loop.first %}{{ 'Welcome. ' }}{% endif %}{{ '<|im_start|>'"
)
BRACES = CHATML.replace("'<|im_start|>'", "'{' + '{'")


def test_turns_are_taken_apart_and_tried() -> None:
    turns = turns_of(make("qwen2"))
    assert turns is not None
    assert turns.go_template() == (
        "{{ range .Messages }}"
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n'
        "{{ end }}{{ end }}<|im_start|>assistant\n"
    )


def test_template_without_a_system() -> None:
    turns = turns_of(make("gemma-spm", GEMMA))
    assert turns is not None
    assert list(turns.around) == ["user", "assistant"]
    assert turns.answer == "<start_of_turn>model\n"
    assert turns.around["user"][0] == "<start_of_turn>user\n"  # without a beginning: Ollama adds it


@pytest.mark.parametrize("template", [FIRST, BRACES, "{{ raise_exception('never') }}"])
def test_what_cannot_be_derived_is_left_out_and_said(template: str) -> None:
    text, notes = modelfile("a.gguf", make("qwen2", template), [], 64, ABOUT)
    assert "TEMPLATE" not in text
    assert "cannot be written as Ollama's" in notes[0]


def test_modelfile_of_a_model_that_continues_text() -> None:
    tokenizer: Any = make("qwen2", None)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    text, notes = modelfile("a.gguf", tokenizer, ends, 64, ABOUT)
    assert notes == []
    assert text.splitlines()[:6] == [
        '# taciturn policy: DP """',
        "# taciturn certificate_sha256: ab",
        "FROM ./a.gguf",
        'TEMPLATE """{{ .Prompt }}"""',
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "<|endoftext|>"',
    ]
    assert "PARAMETER num_ctx 64" in text
    assert "PARAMETER repeat_penalty 1\n" in text
    assert text.count('"""') == 4 + 1  # the comment's; those of the licence are its own
