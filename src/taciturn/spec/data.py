"""Rows: how they become records, how records become privacy units, and text that is public."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from taciturn.spec.base import Spec

GATEWAY = "gateway:"
"""First part of the text of a dataset or model that is behind a gateway: gateway:phee."""

ONE_RECORD = "one record"
"""The unit that is protected where no privacy_unit is named, in the words of reports."""


ChatFormat = Literal["auto", "alpaca", "sharegpt", "openai"]


class DataSpec(Spec):
    """Preparation of rows: their text, and the unit that they belong to."""

    text_field: Annotated[str | None, Field(description="Column that holds the text.")] = None
    question_field: Annotated[
        str | None, Field(description="Column with the question; needs answer_field.")
    ] = None
    answer_field: Annotated[
        str | None, Field(description="Column with the answer; the loss is on the answer only.")
    ] = None
    messages_field: Annotated[
        str | None,
        Field(description="Column of chat messages [{role, content}]; loss on assistant turns."),
    ] = None
    format: Annotated[
        ChatFormat,
        Field(
            description="alpaca (instruction, input, output), sharegpt (conversations) or openai "
            "(messages); auto: what the columns say."
        ),
    ] = "auto"
    prompt_field: Annotated[
        str | None,
        Field(description="Column with the prompt of a pair of answers, text or chat messages."),
    ] = None
    chosen_field: Annotated[
        str | None, Field(description="Column with the answer that was preferred.")
    ] = None
    rejected_field: Annotated[
        str | None, Field(description="Column with the answer that was not.")
    ] = None
    select: Annotated[
        str | None,
        Field(description="Row-wise SQL (DuckDB) that prepares the columns, applied first."),
    ] = None
    privacy_unit: Annotated[
        str | None,
        Field(description="Column or row-wise SQL expression that names the protected unit."),
    ] = None
    max_records_per_unit: Annotated[
        int, Field(ge=1, le=10_000, description="Records one unit may contribute, at most.")
    ] = 8
    max_tokens: Annotated[
        int | None,
        Field(ge=2, le=10_000_000, description="Tokens kept of a record; the rest is cut off."),
    ] = None

    @model_validator(mode="after")
    def _fields_of_format(self) -> Self:
        other = {
            "auto": (),
            "alpaca": ("text_field", "messages_field", "prompt_field"),
            "sharegpt": ("text_field", "question_field", "answer_field", "prompt_field"),
            "openai": ("text_field", "question_field", "answer_field", "prompt_field"),
        }[self.format]
        for name in other:
            if getattr(self, name) is not None:
                own = (
                    "question_field and answer_field"
                    if self.format == "alpaca"
                    else ("messages_field")
                )
                raise ValueError(
                    f"format={self.format!r} reads no column of {name}={getattr(self, name)!r}; "
                    f"leave one of them out, or name its columns with {own}"
                )
        return self

    @property
    def pairs(self) -> bool:
        """True if a record is a pair of answers: two sequences, and so two times the tokens."""
        return self.chosen_field is not None

    @field_validator("privacy_unit")
    @classmethod
    def _not_the_name_of_none(cls, unit: str | None) -> str | None:
        """Refuse a column that a report could not tell from no unit at all."""
        if unit == ONE_RECORD:
            raise ValueError(
                "is what reports say where no unit is named; leave it out for that, and put a "
                "column of this name in double quotes"
            )
        return unit


class PublicSpec(Spec):
    """Text that its owner declares public, to learn from before any private row: it costs nothing.

    It is public if anybody may read all of it, and would have been there without the private rows:
    text that says what they say, or was chosen by them, is not.
    """

    public_data: Annotated[
        Any,
        Field(
            repr=False,
            description="Text that you declare public; fitted first, without a guarantee for it.",
        ),
    ] = None
    public_text_field: Annotated[
        str | None,
        Field(description="Its column of text; default: as in the data, or the one it has."),
    ] = None

    @model_validator(mode="after")
    def _field_of_something(self) -> Self:
        if self.public_text_field is not None and self.public_data is None:
            raise ValueError(
                f"public_text_field={self.public_text_field!r} is a column of public_data; give "
                "that, or leave the column out"
            )
        return self
