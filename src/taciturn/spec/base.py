"""The base of all specs, and the types that their fields share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from taciturn.errors import SpecError

# Names that the system gave: their bytes need be no text.
_PATHS = frozenset(
    (
        "model",
        "base",
        "data",
        "output",
        "signing_key",
        "members",
        "non_members",
        "synthetic",
        "test",
        "public_data",
    )
)


@dataclass(frozen=True, slots=True)
class Flag:
    """Spelling of a field on the command line, where that is not `--its-name`.

    Attributes:
        names: such as `-n` and `--n`; none for a positional argument.
    """

    names: tuple[str, ...] = ()


POSITIONAL = Flag()
OUTPUT = Flag(("--output", "-o"))
NUMBER = Flag(("-n", "--n"))


class Spec(BaseModel):
    """Arguments of one call: frozen, without unknown fields, all text UTF-8."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, defer_build=True)

    @model_validator(mode="after")
    def _utf8(self) -> Self:
        """Check the texts that reports and digests are written from."""
        for name in type(self).model_fields.keys() - _PATHS:
            value = getattr(self, name)
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str):
                    check_text(name, text)
        return self

    def arguments(self, *kinds: type[Spec]) -> dict[str, Any]:
        """Return the fields that were set and are fields of one of `kinds`, too."""
        names = {name for kind in kinds for name in kind.model_fields}
        return {name: getattr(self, name) for name in self.model_fields_set & names}

    def part(self, kind: type[S]) -> S:
        """Return the part of this spec that is a `kind`; what was not set stays unset."""
        return kind(**self.arguments(kind))


S = TypeVar("S", bound=Spec)


def check_text(name: str, text: object) -> None:
    """Raise SpecError unless `text` is one, without bytes as from a terminal of another encoding.

    Paths may hold such: they are the system's, and are opened as they were given.
    """
    if not isinstance(text, str):
        raise SpecError(f"{name} is {type(text).__name__}; give a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SpecError(
            f"{name} is no UTF-8 text from character {error.start + 1} on; check the encoding of "
            "the terminal or file that it comes from"
        ) from None


def is_whole(value: object) -> bool:
    """Return whether an argument is a whole number, as its type says; `True` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _zero_or_more(value: float, least: float) -> float:
    if 0 < value < least:
        raise ValueError(f"must be 0, for greedy decoding, or at least {least:g}")
    return value


Seed = Annotated[int, Field(ge=0, lt=2**63)]
# Far below, logits divided by it overflow; nothing is lost, since 0 is greedy.
NOT_TINY = AfterValidator(lambda value: _zero_or_more(value, 1e-4))
Temperature = Annotated[
    float, Field(ge=0, le=100, allow_inf_nan=False, description="0 is greedy decoding."), NOT_TINY
]
TopP = Annotated[
    float,
    Field(gt=0, le=1, allow_inf_nan=False, description="Probability mass of nucleus sampling."),
]
NewTokens = Annotated[int, Field(ge=1, le=1_000_000, description="Tokens to write at most.")]
AtOnce = Annotated[int, Field(ge=1, le=100_000, description="Texts generated at once.")]
Confidence = Annotated[
    float, Field(ge=0.5, lt=1, allow_inf_nan=False, description="Confidence of every interval.")
]
