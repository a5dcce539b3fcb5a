"""Chat messages to token ids, by the model's own template; the assistant's words are targets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from taciturn.errors import ModelError, RowError
from taciturn.preparation.rows import shield

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Message = Mapping[str, Any]


class ChatTokenizer(Protocol):
    """What is needed of a tokenizer that renders chats."""

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Tokenise each text; the result holds lists under "input_ids"."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render one conversation or a list of them."""


def encode_messages(
    texts: Sequence[str], column: str, tokenizer: ChatTokenizer
) -> list[tuple[list[int], bytes]]:
    """Render and tokenise conversations, given as JSON; targets are marked with 1.

    With {% generation %} in the template it says itself what the assistant generates. Without it
    the target of each assistant turn is what the template adds to the prompt that precedes it.

    Raises ModelError if there is no template or one that rewrites earlier turns, RowError if a
    row is not a list of messages or the template refuses it.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise ModelError(
            f"column {column!r} holds messages, but the model's tokenizer has no chat template; "
            "take the chat version of the model, or give text_field or question_field/answer_field"
        )
    chats = [_chat(text, column) for text in texts]
    by = _by_mask if isinstance(template, str) and _GENERATION.search(template) else _by_prefixes
    return shield(
        lambda: by(chats, tokenizer),
        lambda kind: RowError(
            f"the chat template refuses some conversations of column {column!r} ({kind}); their "
            "roles must come in the order that the model expects"
        ),
    )


def _chat(text: str, column: str) -> list[Message]:
    def failed(_: str = "") -> RowError:
        return RowError(
            f"column {column!r} must hold, in every row, a list of "
            '{"role": ..., "content": ...} with text in both and at least one turn of the role '
            '"assistant"; convert it, or leave the other rows out of the data'
        )

    chat = shield(lambda: json.loads(text), failed)
    if not isinstance(chat, list) or not all(_is_message(turn) for turn in chat):
        raise failed()
    if not any(turn["role"] == "assistant" for turn in chat):
        raise failed()
    return chat


def _is_message(turn: Any) -> bool:
    return isinstance(turn, dict) and all(
        isinstance(turn.get(key), str) for key in ("role", "content")
    )


def _by_mask(chats: list[list[Message]], tokenizer: ChatTokenizer) -> list[tuple[list[int], bytes]]:
    found = tokenizer.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"verbose": False},
    )
    masks = (bytes(mask) for mask in found["assistant_masks"])
    return list(zip(found["input_ids"], masks, strict=True))


def _by_prefixes(
    chats: list[list[Message]], tokenizer: ChatTokenizer
) -> list[tuple[list[int], bytes]]:
    rendered = [_rendered(chat, tokenizer) for chat in chats]
    found = tokenizer(
        [text for text, _ in rendered],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    return [
        (ids, _mask(offsets, spans))
        for ids, offsets, (_, spans) in zip(
            found["input_ids"], found["offset_mapping"], rendered, strict=True
        )
    ]


def _mask(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> bytes:
    """1 for each token with a character inside a span, as {% generation %} has it, too."""
    return bytes(
        any(first < stop and start < last for start, stop in spans) for first, last in offsets
    )


def _rendered(chat: list[Message], tokenizer: ChatTokenizer) -> tuple[str, list[tuple[int, int]]]:
    """The whole conversation as text, and where in it each assistant turn stands."""

    def render(turns: int, *, prompt: bool = False) -> str:
        if turns == 0:
            return ""
        return str(
            tokenizer.apply_chat_template(
                chat[:turns], tokenize=False, add_generation_prompt=prompt
            )
        )

    whole = render(len(chat))
    spans = []
    for index, turn in enumerate(chat):
        if turn["role"] == "assistant":
            after = render(index + 1)
            before = render(index, prompt=True)
            if not after.startswith(before):  # a prompt that opens a thought, say
                before = render(index)
            if not (whole.startswith(after) and after.startswith(before)):
                raise _rewrites()
            spans.append((len(before), len(after)))
    return whole, spans


def _rewrites() -> ModelError:
    return ModelError(
        "the model's chat template renders earlier turns differently once later ones follow, so it "
        "cannot be told which tokens are the assistant's; put {% generation %} into the template, "
        "or give one exchange per row"
    )
