"""What cannot be used is refused before a row is read, on public text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data.tokens.test_chat import MARKED, PLAIN, REWRITING, STRICT, THINKING, WITHOUT_PROMPT
from data.tokens.test_plain import bytes_behind, unigram, whole_words
from taciturn.data.declared import DeclaredRows
from taciturn.data.schema_fields import Fields
from taciturn.data.tokens import probing
from taciturn.data.tokens.probing import check_tokenizer
from taciturn.data.tokens.tokenize import prepare
from taciturn.errors import ModelError
from taciturn.spec import DataSpec

pytestmark = pytest.mark.usefixtures("kept_processes")

TEXT = Fields("text", ("text",))
CHAT = Fields("messages", ("messages",))


@pytest.fixture
def tokenizer(tiny_medical: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_medical)


@pytest.mark.parametrize("make", [unigram, bytes_behind, whole_words])
def test_tokenizers_of_all_kinds_pass(make: Any) -> None:
    check_tokenizer(make(), TEXT, 1000)


@pytest.mark.parametrize("template", [PLAIN, MARKED, STRICT, THINKING, WITHOUT_PROMPT])
def test_templates_of_all_kinds_pass(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    check_tokenizer(tokenizer, CHAT, 6144)


def without_unknown(tokenizer: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")


def beyond(tokenizer: Any) -> Any:
    """Reads the last of its words in every text."""
    return _changed(tokenizer, lambda rows: [[*ids, 6143] for ids in rows])


def mixing(tokenizer: Any) -> Any:
    """Reads the second of two texts otherwise than alone."""
    return _changed(tokenizer, lambda rows: rows[:1] + [[*ids, 9] for ids in rows[1:]])


def _changed(tokenizer: Any, change: Callable[[list[list[int]]], list[list[int]]]) -> Any:
    class Changed(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, text: Any, **options: Any) -> Any:
            found = super().__call__(text, **options)
            found["input_ids"] = change(found["input_ids"])
            return found

    tokenizer.__class__ = Changed
    return tokenizer


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_unknown, "give it an unknown token"),
        (beyond, "writes token 6143, and the model has embeddings for 6143"),
        (mixing, "reads others with it"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(
    tokenizer: Any, change: Any, words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        check_tokenizer(change(tokenizer), TEXT, 6143)


def test_special_tokens_beyond_the_embedding_that_no_text_can_become_do_no_harm(
    tokenizer: Any,
) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_tokenizer(tokenizer, TEXT, 6144)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('no') }}", "does not render a question"),
        ("{{ messages[0].nothing.at.all }}", "does not render a question"),
        (REWRITING, "earlier turns"),
        ("{% generation %}{% endgeneration %}" + WITHOUT_PROMPT, "on public conversations"),
        ("<far>" + PLAIN, "embeddings for 6144"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(
    tokenizer: Any, template: str | None, words: str
) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<far>"]})
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=words):
        check_tokenizer(tokenizer, CHAT, 6144)


def test_one_that_does_not_come_back_is_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_LIMIT_S", 0.3)
    tokenizer.chat_template = (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + PLAIN
    )
    with pytest.raises(ModelError, match=r"in 0\.3 s"):
        check_tokenizer(tokenizer, CHAT, 6144)


@pytest.mark.parametrize("declared", [True, False])
def test_it_is_refused_before_a_row_is_read(tokenizer: Any, declared: bool, tmp_path: Path) -> None:
    """Where there is none with text, too."""
    schema = pa.schema([("id", pa.string()), ("messages", pa.string())])

    def batches() -> Any:
        yield pa.RecordBatch.from_pylist([{"id": "a", "messages": None}], schema)
        raise AssertionError("a row was read")

    rows = pa.RecordBatchReader.from_batches(schema, batches())
    data = DeclaredRows(rows, 9) if declared else rows
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        prepare(data, DataSpec(privacy_unit="id"), tokenizer, 32, tmp_path / "data", 0)
    assert not list(tmp_path.iterdir())
