"""Canaries for a one-run audit: invented units whose loss should give away that they were in.

- random: a text of random tokens, which nothing but its own record teaches;
- new-token: a token that ordinary text hardly has, several times (Panda et al. 2025, arXiv
  2503.06808, found these the easiest to detect); one token for each canary;
- secret: a sentence about an invented person's disease, no two about the same person.

What they say depends on the tokenizer and chance only, never on a row. Chance and coins come from
the operating system, not from a user's seed: whoever knows the seed must not know the coins.
"""

from __future__ import annotations

from random import SystemRandom
from typing import Any, Protocol

from taciturn.data.tokens.plain import special_tokens
from taciturn.data.tokens.planted import PlantedUnits
from taciturn.embedded.vocabulary import vocabulary
from taciturn.engine.auditing.bounds import fewest_canaries
from taciturn.engine.privacy.rng import SecureStream
from taciturn.errors import SpecError
from taciturn.spec import CanaryKind

CONFIDENCE = 0.95
"""Of a bound, where nobody asks for another one."""

_RANDOM_TOKENS = 16
_REPEATS = 4

_SECRETS = (
    "{name} suffers from a severe form of {disease}.",
    "{name} has told nobody but us about the {disease}.",
    "{name} was admitted last night with {disease}.",
)


class Words(Protocol):
    """Tokenizer methods that are needed to make texts of chosen tokens."""

    @property
    def all_special_ids(self) -> list[int]:
        """Tokens that structure a text, which no canary may hold."""

    def __len__(self) -> int:
        """Number of tokens."""

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Tokenise each text; the result holds lists under "input_ids"."""

    def batch_decode(self, sequences: list[list[int]], **options: Any) -> list[str]:
        """The text of each list of tokens."""


def check_number(canaries: int) -> None:
    """Raise SpecError if so few canaries can give no bound, however right the guesses are."""
    fewest = fewest_canaries(0.0, CONFIDENCE)
    assert fewest is not None
    if 0 < canaries < fewest:
        raise SpecError(
            f"canaries={canaries} can give no bound at confidence {CONFIDENCE:g}, even if all "
            f"guesses are right; take at least {fewest}, and some hundreds for a useful bound"
        )


def draw_canaries(
    kind: CanaryKind, number: int, tokenizer: Words, *, pairs: bool = False
) -> PlantedUnits:
    """`number` canaries with their coins; as `pairs` of answers, each has a rejected text as well.

    Raises:
        SpecError: there are not as many different texts of this kind.
    """
    chance = SystemRandom()
    texts_each = 2 if pairs else 1
    if kind == "random":
        texts = _random_texts(texts_each * number, tokenizer, chance)
    else:
        choices = _rare_words(tokenizer) if kind == "new-token" else _people()
        if texts_each * number > len(choices):
            raise _too_many(number, len(choices) // texts_each, kind)
        draw = _new_token_texts if kind == "new-token" else _secrets
        texts = draw(texts_each * number, choices, chance)
    coins = SecureStream.fresh().bernoulli(number, 0.5)
    return PlantedUnits(kind, tuple(texts[:number]), coins, tuple(texts[number:]))


def _random_texts(number: int, tokenizer: Words, chance: SystemRandom) -> list[str]:
    tokens = _own_texts(tokenizer, 1)
    token_lists = [chance.choices(list(tokens), k=_RANDOM_TOKENS) for _ in range(number)]
    return tokenizer.batch_decode(token_lists)


def _rare_words(tokenizer: Words) -> list[str]:
    """The rarest tokens: a vocabulary's later half, since tokenizers add common tokens first."""
    texts = _own_texts(tokenizer, _REPEATS)
    return list(texts.values())[len(texts) // 2 :]


def _new_token_texts(number: int, rare: list[str], chance: SystemRandom) -> list[str]:
    texts_of_tokens = rare[len(rare) - number :]
    chance.shuffle(texts_of_tokens)
    return texts_of_tokens


def _own_texts(tokenizer: Words, repeats: int) -> dict[int, str]:
    """Token to the text of `repeats` of it, where that text is read as just these tokens."""
    special = {*tokenizer.all_special_ids, *special_tokens(tokenizer).values()}
    ordinary = sorted(set(range(len(tokenizer))) - special)
    token_lists = [[token] * repeats for token in ordinary]
    texts = tokenizer.batch_decode(token_lists)
    read = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    pairs = zip(ordinary, texts, token_lists, read, strict=True)
    return {
        token: text
        for token, text, tokens, tokens_read in pairs
        if text.strip() and tokens_read == tokens
    }


def _people() -> list[str]:
    words = vocabulary()
    first_names = sorted({name for names in words.people.given_names.values() for name in names})
    return [f"{first} {last}" for first in first_names for last in words.people.family]


def _secrets(number: int, people: list[str], chance: SystemRandom) -> list[str]:
    conditions = vocabulary().conditions
    return [
        chance.choice(_SECRETS).format(name=name, disease=chance.choice(conditions).name)
        for name in chance.sample(people, number)
    ]


def _too_many(number: int, most: int, kind: CanaryKind) -> SpecError:
    return SpecError(
        f"canaries={number} exceeds the {most} different canaries of canary_kind={kind!r} with "
        'this tokenizer; lower it, or take canary_kind="random"'
    )
