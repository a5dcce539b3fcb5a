"""Pairs of answers to token ids: one record of two sequences, the chosen one and the rejected one.

Both begin with the same prompt. They are stored as one record in turn: chosen token, rejected
token, chosen token ... So whatever holds of a record holds of a pair: it is of one unit, it is
never split, and its padded length follows from itself. The shorter sequence is filled up with
tokens 0 that are no targets. `model/preference.py` takes them apart.

Each sequence keeps at most `max_tokens` tokens. An answer is cut at its end, as texts are, and the
prompt at its beginning (so does TRL with `max_prompt_length`): what an answer follows on stands at
the prompt's end. The prompt gets what the longer answer leaves, and half of the tokens at least; it
is the same in both sequences.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taciturn.data.rows import shield
from taciturn.data.tokens.chat import ChatTokenizer, encode_messages
from taciturn.errors import RowError

Tokens = list[int]


def text_pair(
    bos: Tokens, prompt: Tokens, winner: Tokens, loser: Tokens, eos: Tokens, max_tokens: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """One pair of `[bos] prompt answer [eos]`; the tokens of the answer and eos are targets."""
    answers = (winner + eos, loser + eos)
    room = kept_of_prompt(len(prompt), max(map(len, answers)), max_tokens - len(bos))
    before = bos + prompt[len(prompt) - room :]
    return interleaved(before, answers, max_tokens)


def chat_pairs(
    parts: Sequence[Sequence[str]],
    columns: tuple[str, ...],
    tokenizer: ChatTokenizer,
    max_tokens: int,
    most_characters: int | None,
) -> list[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
    """Pairs of conversations, given as JSON, rendered by the model's own template.

    What both sequences begin with counts as their prompt, and is no target: its probability is the
    same in both, so that it adds nothing to their difference.

    Args:
        most_characters: what is read of a turn: of a prompt's the end, of an answer's the start.

    Raises RowError as `encode_messages` does.
    """
    prompts = [_turns(text, columns[0], most_characters, end=True) for text in parts[0]]
    sides = []
    for texts, column in zip(parts[1:], columns[1:], strict=True):
        answers = (_turns(text, column, most_characters, end=False) for text in texts)
        chats = [
            json.dumps(prompt + answer, ensure_ascii=False)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        sides.append([ids for ids, _ in encode_messages(chats, column, tokenizer)])
    return [_chat_pair(*pair, max_tokens) for pair in zip(sides[0], sides[1], strict=True)]


def _turns(text: str, column: str, most_characters: int | None, *, end: bool) -> list[Any]:
    """Turns of one cell; what is none is left for `encode_messages` to refuse."""
    turns = shield(
        lambda: json.loads(text),
        lambda _: RowError(f"column {column!r} must hold a list of messages in every row"),
    )
    if not isinstance(turns, list):
        raise RowError(f"column {column!r} must hold a list of messages in every row; convert it")
    if most_characters is None:
        return turns
    part = slice(-most_characters, None) if end else slice(most_characters)
    return [
        {**turn, "content": turn["content"][part]}
        if isinstance(turn, dict) and isinstance(turn.get("content"), str)
        else turn
        for turn in turns
    ]


def _chat_pair(
    winner: Tokens, loser: Tokens, max_tokens: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    alike = next(
        (
            place
            for place, pair in enumerate(zip(winner, loser, strict=False))
            if len(set(pair)) > 1
        ),
        min(len(winner), len(loser)),
    )
    answers = (winner[alike:], loser[alike:])
    room = kept_of_prompt(alike, max(map(len, answers)), max_tokens)
    return interleaved(winner[alike - room : alike], answers, max_tokens)


def kept_of_prompt(prompt: int, answer: int, max_tokens: int) -> int:
    """Tokens that are kept of a prompt, where the longer answer has `answer` tokens."""
    return max(0, min(prompt, max(max_tokens - answer, max_tokens // 2)))


def interleaved(
    before: Tokens, answers: tuple[Tokens, Tokens], max_tokens: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Token ids and targets of both sequences in turn, `[chosen, rejected] * length`.

    A sequence's first token is never a target: nothing precedes it.
    """
    room = max_tokens - len(before)
    sequences = [before + answer[:room] for answer in answers]
    length = max(1, *map(len, sequences))
    ids_2T = np.zeros((2, length), dtype=np.int32)
    targets_2T = np.zeros((2, length), dtype=np.bool_)
    for side, sequence in enumerate(sequences):
        ids_2T[side, : len(sequence)] = sequence
        targets_2T[side, max(1, len(before)) : len(sequence)] = True
    return ids_2T.T.flatten(), targets_2T.T.flatten()
