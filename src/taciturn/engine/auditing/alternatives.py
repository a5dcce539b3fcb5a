"""Candidates for a secret: every text that a template and its lists of values give."""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from taciturn.embedded.alternatives import alternative_lists
from taciturn.errors import SpecError

Values = str | Sequence[str]
"""A list of values, or the name of an embedded list, or a text file with one value a line."""


@dataclass(frozen=True, slots=True, repr=False)
class AlternativeSpace:
    """The texts of a template, each as likely to be the secret as any other before one looks.

    Attributes:
        pieces: what a text is made of, in order: literal text, or the values of a field.
        size: how many texts there are. Up to `enumerated_up_to` they are counted; of more, it is
            the number of combinations, an upper bound where two of them spell the same text.
    """

    pieces: tuple[str | tuple[str, ...], ...]
    size: int

    @classmethod
    def of(
        cls, template: str | None, alternatives: Mapping[str, Values] | Values, limit: int
    ) -> AlternativeSpace:
        """The space of a template with a list for each of its {fields}.

        Without a template, `alternatives` is one list of whole texts. Values that occur twice
        count once; white space at the beginning of a text is left out.

        Args:
            limit: up to how many texts are counted one by one.

        Raises:
            SpecError: a field without values, values without a field, or fewer than two texts.
        """
        pieces = _pieces(template, alternatives)
        combinations = math.prod(len(piece) for piece in pieces if not isinstance(piece, str))
        space = cls(pieces, combinations)
        if combinations <= limit:
            space = cls(pieces, len(set(space.texts())))
        if space.size < 2:
            raise SpecError(
                f"the template's space has {space.size} text(s), and a secret needs at least one "
                "alternative; give more values"
            )
        return space

    def __contains__(self, text: str) -> bool:
        """True if the template can spell `text`."""
        reached = {0}
        for piece in self.pieces:
            values = (piece,) if isinstance(piece, str) else piece
            reached = {
                start + len(value)
                for start in reached
                for value in values
                if text.startswith(value, start)
            }
        return len(text) in reached

    def check(self, secret: str) -> None:
        """Raise SpecError unless `secret` is one of the texts."""
        if secret not in self:
            raise SpecError(
                f"the secret is not among the {self.size} texts of the template's space; add its "
                "value to the list of its field, or write the template as the secret is written "
                "(upper and lower case, spaces, punctuation)"
            )

    def texts(self) -> Iterator[str]:
        """Every combination."""
        lists = [(piece,) if isinstance(piece, str) else piece for piece in self.pieces]
        return ("".join(values) for values in itertools.product(*lists))

    def draw(self, n: int, rng: Random) -> list[str]:
        """`n` different texts at random; fewer where many combinations spell the same."""
        candidates: dict[str, None] = {}
        for _ in range(10 * n):
            values = (p if isinstance(p, str) else rng.choice(p) for p in self.pieces)
            candidates["".join(values)] = None
            if len(candidates) == n:
                break
        return list(candidates)


def _pieces(
    template: str | None, alternatives: Mapping[str, Values] | Values
) -> tuple[str | tuple[str, ...], ...]:
    if template is None:
        if isinstance(alternatives, Mapping):
            raise SpecError(
                "alternatives of fields need a template that names them, as in "
                '"suffers from {disease}"; give it, or one list of whole secrets'
            )
        return (tuple(dict.fromkeys(text.lstrip() for text in _values(alternatives))),)
    if not isinstance(alternatives, Mapping):
        raise SpecError(
            "a template needs a list of values for each of its fields; give alternatives as a "
            'mapping, as in {"disease": [...]}'
        )
    parsed = _parsed(template.lstrip())
    _check_fields([field for _, field in parsed if field is not None], alternatives)
    pieces: list[str | tuple[str, ...]] = []
    for literal, field in parsed:
        pieces.append(literal)
        if field is not None:
            values = _values(alternatives[field])
            first = pieces == [""]
            pieces.append(tuple(dict.fromkeys(v.lstrip() if first else v for v in values)))
    return tuple(pieces)


def _parsed(template: str) -> list[tuple[str, str | None]]:
    """Literal text and the field after it, in turn; `{{` is a brace."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise SpecError(
            f"the template is not well-formed ({error}); write fields as {{name}}, and a brace "
            "itself as {{ or }}"
        ) from None
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise SpecError("the template's fields take no format; write them as {name}")
    return [(literal, field) for literal, field, _, _ in parts]


def _check_fields(fields: Sequence[str], alternatives: Mapping[str, Values]) -> None:
    if not fields:
        raise SpecError("the template names no field; write for example {disease}")
    if len(set(fields)) < len(fields):
        raise SpecError("the template names a field twice; give each place a field of its own")
    if set(fields) != set(alternatives):
        missing, unused = set(fields) - set(alternatives), set(alternatives) - set(fields)
        raise SpecError(
            f"fields without alternatives: {sorted(missing)}; alternatives without a field: "
            f"{sorted(unused)}; give each field of the template one list"
        )


def _values(values_or_file: Values) -> Sequence[str]:
    if not isinstance(values_or_file, str):
        values: Sequence[str] = list(values_or_file)
    elif values_or_file in alternative_lists():
        values = alternative_lists()[values_or_file]
    else:
        values = _lines(values_or_file)
    if not values:
        raise SpecError("a list of alternatives is empty; give the values that it could be")
    return values


def _lines(file: str) -> list[str]:
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        names = ", ".join(alternative_lists())
        raise SpecError(
            "a name of alternatives is neither an embedded list nor a text file in UTF-8 that can "
            f"be read; embedded are {names}; values themselves are given as a list"
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]
