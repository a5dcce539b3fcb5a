"""Sampling in batches, repeatable from a seed, whole or streamed."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextIteratorStreamer

from taciturn.data.tokens.plain import special_tokens
from taciturn.errors import SpecError
from taciturn.spec import SampleSpec, check_text


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation of one prompt.

    Attributes:
        text: does not repeat the prompt.
        tokens: written, the one that ends it included.
        ids: of these tokens; empty where the text was streamed.
    """

    prompt: str
    text: str
    tokens: int = 0
    ids: tuple[int, ...] = ()


def sample(
    model: Any, tokenizer: Any, prompts: Sequence[str], spec: SampleSpec, context_length: int
) -> list[Completion]:
    """`spec.n` completions for every prompt, in the order of the prompts.

    Sampling randomness comes from `spec.seed` (or a fresh one); it protects nothing, so an
    ordinary generator will do. The global random state is left as it was.
    """
    repeated = [prompt for prompt in checked_prompts(prompts) for _ in range(spec.n)]
    seed = _seed(spec)
    completions: list[Completion] = []
    with torch.random.fork_rng(devices=_devices(model)), torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, len(repeated), spec.batch_size):
            batch = repeated[start : start + spec.batch_size]
            inputs = _encode(model, tokenizer, batch, spec.max_new_tokens, context_length)
            output = model.generate(**inputs, **_options(spec, tokenizer))
            new = output[:, inputs["input_ids"].shape[1] :]
            texts = tokenizer.batch_decode(new, skip_special_tokens=True)
            counts = _new_lengths(new, model.generation_config.eos_token_id)
            rows = zip(batch, texts, counts, new.tolist(), strict=True)
            completions += [
                Completion(prompt, text, count, tuple(ids[:count]))
                for prompt, text, count, ids in rows
            ]
    return completions


def stream(
    model: Any, tokenizer: Any, prompt: str, spec: SampleSpec, context_length: int
) -> Generator[str, None, int]:
    """One completion, piece by piece as it is written.

    The generator's value, once all is written, is the number of tokens. As in `sample`, the global
    random state is left as it was.
    """
    checked_prompts([prompt])
    inputs = _encode(model, tokenizer, [prompt], spec.max_new_tokens, context_length)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    seed = _seed(spec)
    options = {**inputs, **_options(spec, tokenizer), "streamer": streamer}
    failure: list[BaseException] = []
    lengths: list[int] = []

    def generate() -> None:
        try:
            with torch.random.fork_rng(devices=_devices(model)), torch.no_grad():
                torch.manual_seed(seed)
                output = model.generate(**options)
            lengths.append(output.shape[1] - inputs["input_ids"].shape[1])
        except BaseException as error:
            failure.append(error)
            streamer.end()

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    if failure:
        raise failure[0]
    return lengths[0]


def _seed(spec: SampleSpec) -> int:
    """The one asked for, or a fresh one."""
    return spec.seed if spec.seed is not None else secrets.randbits(63)


def _new_lengths(new_BT: torch.Tensor, ends: list[int] | int | None) -> list[int]:
    """Tokens of each row up to the first that ends it; what follows fills the batch up."""
    ends_BT = torch.isin(new_BT, torch.tensor([] if ends is None else ends, device=new_BT.device))
    return [int(ends_T.nonzero()[0, 0]) + 1 if ends_T.any() else len(ends_T) for ends_T in ends_BT]


def checked_prompts(prompts: Iterable[str]) -> list[str]:
    """The prompts as a list; raises SpecError unless they are several texts."""
    if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
        raise SpecError("prompts must be a list of strings; write [prompt] for a single one")
    prompt_list = list(prompts)
    for index, prompt in enumerate(prompt_list):
        check_text(f"prompt {index}", prompt)
    return prompt_list


def _encode(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, context_length: int
) -> dict[str, torch.Tensor]:
    """Prompts as token ids and attention mask, padded on the left, where the model is."""
    read = encoded(model, tokenizer, prompts, max_new_tokens, context_length)
    rows = [lead + own for lead, own in read]
    width = max(len(row) for row in rows)
    pad = tokenizer.pad_token_id or 0
    padded = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {
        "input_ids": torch.tensor(padded, device=model.device),
        "attention_mask": torch.tensor(mask, device=model.device),
    }


def encoded(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, context_length: int
) -> list[tuple[list[int], list[int]]]:
    """Tokens that a model reads of each prompt: those that come before every text, and its own.

    Of a prompt that is too long the last ones are read.
    """
    room = context_length - max_new_tokens
    before = begins(tokenizer)
    longest = len(before([]))
    if room <= longest:
        raise SpecError(
            f"max_new_tokens={max_new_tokens} leaves no room for a prompt in the model's context "
            f"of {context_length}; lower it"
        )
    ids = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    check_tokens(model, ids)
    prompt_limit = room - longest
    own_ids = [row[max(0, len(row) - prompt_limit) :] for row in ids]
    leads = [before(row)[: len(before(row)) - len(row)] for row in own_ids]
    return [
        # Something must come before the first token.
        ([tokenizer.eos_token_id or 0] if not lead and not row else lead, row)
        for lead, row in zip(leads, own_ids, strict=True)
    ]


def begins(tokenizer: Any) -> Callable[[list[int]], list[int]]:
    """Puts the token that records begin with before a prompt's tokens.

    Not before a special one: a conversation that was rendered by a chat template begins as the
    template says, in the data of a fit, too.
    """
    if tokenizer.bos_token_id is None:
        return lambda ids: ids
    start = [tokenizer.bos_token_id]
    special = frozenset(special_tokens(tokenizer).values())
    return lambda ids: ids if ids and ids[0] in special else start + ids


def check_tokens(model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Raise SpecError if a prompt has a token without an embedding, as of another modality."""
    size = len(model.get_input_embeddings().weight)
    highest = max((token for row in rows for token in row), default=0)
    if highest >= size:
        raise SpecError(
            f"a prompt has a special token with id {highest}, and the model has embeddings for "
            f"ids below {size}; leave that token out"
        )


def _options(spec: SampleSpec, tokenizer: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_new_tokens": spec.max_new_tokens,
        "pad_token_id": tokenizer.pad_token_id or 0,
        "use_cache": True,
        "do_sample": spec.temperature > 0,
    }
    if spec.temperature > 0:
        # top_k=0: the temperature and top_p that were asked for, and no hidden default besides.
        options |= {"temperature": spec.temperature, "top_p": spec.top_p, "top_k": 0}
    return options


def _devices(model: Any) -> list[int]:
    device = model.device
    return [device.index or 0] if device.type == "cuda" else []
