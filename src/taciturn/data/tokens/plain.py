"""Private text to tokens, none of which is a special one.

`<s>` or `<|im_end|>` in a text is text: as the token of that name it would end a record, or let one
person's words pass for the other side of a conversation. Tokenizers take it for the token unless
they are told otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from taciturn.errors import RowError

Span = tuple[int, int]

_ROLES = ("bos", "eos", "pad", "cls", "sep", "mask")
_PRIVATE_USE = range(0xE000, 0xF900)


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """The special tokens that no private text may become, by their text.

    The unknown token is not among them, unless it is also one of the others: it stands for what the
    tokenizer cannot write.
    """
    texts_and_ids = (getattr(tokenizer, f"all_special_{what}", ()) for what in ("tokens", "ids"))
    special = dict(zip(*texts_and_ids, strict=True))
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special |= {token.content: number for number, token in added.items() if token.special}
    unknown = getattr(tokenizer, "unk_token", None)
    if unknown not in [getattr(tokenizer, f"{role}_token", None) for role in _ROLES]:
        special.pop(unknown, None)
    return {text: int(number) for text, number in special.items() if text}


def plain_tokens(
    tokenizer: Any, texts: Sequence[str], special: Mapping[str, int] | None = None
) -> list[list[int]]:
    """Token ids of each text, without special tokens around it or in it.

    What a tokenizer takes for a special token nevertheless, because its model knows the word, is
    read with its first two characters kept apart; what cannot be read otherwise is left out.

    Args:
        special: what `special_tokens` says of the tokenizer, which takes a while for some.
    """
    special = special_tokens(tokenizer) if special is None else special
    forbidden = frozenset(special.values())
    rows = _read(tokenizer, list(texts))["input_ids"]
    again = [row for row, ids in enumerate(rows) if not forbidden.isdisjoint(ids)]
    if again and getattr(tokenizer, "is_fast", False):
        mark = mark_for(texts[row] for row in again)
        marked = [marked_text(texts[row], special, mark) for row in again]
        read = _read(tokenizer, marked, return_offsets_mapping=True)
        for row, text, ids, offsets in zip(
            again, marked, read["input_ids"], read["offset_mapping"], strict=True
        ):
            rows[row] = [ids[index] for index in without_marks(text, offsets, mark)]
    for row in again:
        rows[row] = [token for token in rows[row] if token not in forbidden]
    return cast(list[list[int]], rows)


def mark_for(texts: Iterable[str]) -> str:
    """A character for private use that is in none of the texts; raises RowError if all are."""
    used = set().union(*texts)
    for code in _PRIVATE_USE:
        if chr(code) not in used:
            return chr(code)
    raise RowError("a text holds every character for private use; remove them")


def marked_text(text: str, special: Iterable[str], mark: str) -> str:
    """The text with a mark after the first character of whatever reads as a special token.

    Of a special token of a single character nothing is left.
    """

    def parted(match: re.Match[str]) -> str:
        first, rest = match[0][0], match[0][1:]
        return first + mark + rest if rest else ""

    while present := _present(text, special):
        pattern = "|".join(map(re.escape, present))
        changed = re.sub(pattern, parted, text, flags=re.IGNORECASE)
        if changed == text:  # only if a character in another case is two
            break
        text = changed
    return text


def _present(text: str, special: Iterable[str]) -> list[str]:
    """The special tokens that a text has in it, in any case, the longest first.

    Looked up where one may begin: an expression of thousands of them takes long to search.
    """
    by_lower = {special_text.lower(): special_text for special_text in special}
    lower, found_texts = text.lower(), set()
    beginnings = re.escape("".join({lowered[0] for lowered in by_lower}))
    lengths = {len(lowered) for lowered in by_lower}
    for match in re.finditer(f"[{beginnings}]", lower) if beginnings else ():
        start = match.start()
        found_texts |= {part for n in lengths if (part := lower[start : start + n]) in by_lower}
    return sorted((by_lower[lowered] for lowered in found_texts), key=len, reverse=True)


def without_marks(text: str, offsets: Sequence[Span], mark: str) -> list[int]:
    """The indexes of a marked text's tokens, but for those that are a mark and nothing else."""
    return [
        index
        for index, (first, last) in enumerate(offsets)
        if first == last or set(text[first:last]) != {mark}
    ]


def _read(tokenizer: Any, texts: list[str], **options: bool) -> Any:
    """verbose=False: a warning about a text longer than the model's context would state it."""
    return tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
        **options,
    )
