"""Chat messages to token ids, by the model's own template; the assistant's words are targets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from taciturn.data.rows import shield
from taciturn.data.tokens.plain import mark_for, marked_text, special_tokens, without_marks
from taciturn.errors import ModelError, RowError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Message = Mapping[str, Any]


class ChatTokenizer(Protocol):
    """Tokenizer that renders chats."""

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Tokenise each text; the result holds lists under "input_ids"."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render one conversation or a list of them."""


def encode_messages(
    texts: Sequence[str], column: str, tokenizer: ChatTokenizer, most_characters: int | None = None
) -> list[tuple[list[int], bytes]]:
    """Render and tokenise conversations, given as JSON; targets are marked with 1.

    With {% generation %} in the template it says itself what the assistant generates. Without it
    the target of each assistant turn is what the template adds to the prompt that precedes it.

    What a turn says is text, also where it reads as a special token; the template's are special.

    Args:
        most_characters: what is read of a conversation: turns until they have as many characters,
            and as many of each.

    Raises ModelError if there is no template, RowError if a row is not a list of messages, the
    template refuses it or renders earlier turns of it otherwise once later ones follow.
    """
    template = check_template(tokenizer, column)
    special = special_tokens(tokenizer)
    by = _by_mask if isinstance(template, str) and _GENERATION.search(template) else _by_prefixes

    def encoded() -> list[tuple[list[int], bytes]]:
        turns = (_cut(_chat(text, column), most_characters) for text in texts)
        return by([_MarkedChat.of(messages, special) for messages in turns], tokenizer)

    return shield(
        encoded,
        lambda kind: RowError(
            f"the chat template refuses some conversations of column {column!r} ({kind}); their "
            "roles must come in the order that the model expects"
        ),
    )


def check_template(tokenizer: Any, column: str) -> Any:
    """The tokenizer's chat template; raises ModelError if it has none."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise ModelError(
            f"column {column!r} holds messages, but the model's tokenizer has no chat template; "
            "take the chat version of the model, or give text_field or question_field/answer_field"
        )
    return template


@dataclass(frozen=True, slots=True, repr=False)
class _MarkedChat:
    """A conversation whose words are not special tokens; `mark` keeps apart what would be one."""

    turns: list[Message]
    mark: str | None

    @classmethod
    def of(cls, turns: list[Message], special: Mapping[str, int]) -> _MarkedChat:
        """Chat with marks only where they are needed: the rest is tokenised as it always is."""
        mark = mark_for(_strings(turns))
        marked = _replaced(turns, lambda text: marked_text(text, special, mark))
        return cls(marked, None if marked == turns else mark)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from (key, *_strings(entry))
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry)


def _replaced(value: Any, replace: Callable[[str], str]) -> Any:
    """The same with every string in it replaced."""
    if isinstance(value, str):
        return replace(value)
    if isinstance(value, Mapping):
        return {replace(key): _replaced(entry, replace) for key, entry in value.items()}
    return [_replaced(entry, replace) for entry in value] if isinstance(value, list) else value


def _cut(turns: list[Message], most_characters: int | None) -> list[Message]:
    """The first turns; what follows them would be beyond the last token that is kept."""
    if most_characters is None:
        return turns
    characters_left, kept_turns = most_characters, []
    for turn in turns:
        if characters_left <= 0:
            break
        kept_turns.append(_replaced(turn, lambda text: text[:most_characters]))
        characters_left -= 1 + len(turn["content"])
    return kept_turns


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


def _by_mask(chats: list[_MarkedChat], tokenizer: ChatTokenizer) -> list[tuple[list[int], bytes]]:
    encoded = tokenizer.apply_chat_template(
        [chat.turns for chat in chats],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"verbose": False, "return_offsets_mapping": True},
    )
    columns = (encoded["input_ids"], encoded["assistant_masks"], encoded["offset_mapping"])
    return [
        _unmarked(chat, partial(_whole, chat, tokenizer), ids, bytes(mask), offsets)
        for chat, ids, mask, offsets in zip(chats, *columns, strict=True)
    ]


def _by_prefixes(
    chats: list[_MarkedChat], tokenizer: ChatTokenizer
) -> list[tuple[list[int], bytes]]:
    rendered = [_rendered(chat.turns, tokenizer) for chat in chats]
    encoded = tokenizer(
        [text for text, _ in rendered],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    return [
        _unmarked(chat, partial(str, text), ids, _mask(offsets, spans), offsets)
        for chat, ids, offsets, (text, spans) in zip(
            chats, encoded["input_ids"], encoded["offset_mapping"], rendered, strict=True
        )
    ]


def _whole(chat: _MarkedChat, tokenizer: ChatTokenizer) -> str:
    return str(tokenizer.apply_chat_template(chat.turns, tokenize=False))


def _unmarked(
    chat: _MarkedChat,
    text: Callable[[], str],
    ids: list[int],
    mask: bytes,
    offsets: Sequence[tuple[int, int]],
) -> tuple[list[int], bytes]:
    """The tokens of a rendered conversation without those of the marks in it."""
    if chat.mark is None:
        return ids, mask
    positions = without_marks(text(), offsets, chat.mark)
    return [ids[index] for index in positions], bytes(mask[index] for index in positions)


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


def _rewrites() -> RowError:
    return RowError(
        "the model's chat template renders earlier turns of some conversations differently once "
        "later ones follow, so it cannot be told which tokens are the assistant's; put "
        "{% generation %} into the template, or give one exchange per row"
    )
