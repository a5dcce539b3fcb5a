"""Parts of all wire values: strict, frozen, and bounded in every field."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

LATER = ConfigDict(defer_build=True)
"""Validators are made when first needed: a command that uses two values waits for two."""


class WireValue(BaseModel):
    """A value that crosses a boundary; an unknown field is an error on both sides."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Name = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Letters, digits, dot, dash, underscore; 64 at most.",
        examples=["phee"],
    ),
]
Identifier = Annotated[
    str, Field(pattern=r"^[a-z]{2,8}_[0-9a-z]{16,32}$", examples=["job_4k2j8w0q9z5t7x1m3c6v"])
]
Holder = Annotated[
    str,
    Field(
        pattern=r"^(user|group):[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$",
        description="`user:NAME` or `group:NAME`.",
        examples=["user:ada"],
    ),
]
Epsilon = Annotated[float, Field(ge=0.01, le=1000, allow_inf_nan=False, examples=[8.0])]
Delta = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False, examples=[1e-6])]
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Moment = datetime

PolicyKind = Literal["mock", "DP", "no guarantee", "public"]


class PolicyLine(WireValue):
    """Policy of a result: the one line that every representation shows."""

    kind: PolicyKind
    text: Annotated[
        str, Field(max_length=400, examples=["DP (epsilon=3, delta=1e-06, unit=patient_id)"])
    ]

    def __str__(self) -> str:
        return self.text


class Page(WireValue, Generic[T]):
    """One page of a list; `next_cursor` gets the next one, and is null on the last."""

    items: tuple[T, ...]
    next_cursor: str | None = None


class Problem(WireValue):
    """An error as RFC 9457 has it. `code` is stable; the words are for people."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = Field(examples=["urn:taciturn:problem:budget_exceeded"])
    title: str
    status: int
    detail: str
    code: str = Field(examples=["budget_exceeded"])
    instance: str | None = None
    incident: str | None = None


class Health(WireValue):
    """The gateway is well; where it is not, the answer is a Problem."""

    status: Literal["ok"]


class Readiness(Health):
    """The gateway can answer. It can do so, and jobs that run go on, while what starts workers is
    away."""

    launcher: Annotated[
        Literal["ok", "away"],
        Field(description="Whether the cluster that runs the workers has answered lately."),
    ] = "ok"
    away_since: Moment | None = None
