"""Base models that a gateway knows: what they are is declared, so that jobs are priced unseen."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from taciturn.wire.values import Moment, WireValue

BaseModelName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,299}$",
        description="Hub id, or a name that workers know as a path.",
        examples=["meta-llama/Llama-2-7b-hf"],
    ),
]


class NewBaseModel(WireValue):
    """A model that may be fitted. A worker that finds other figures refuses to run."""

    name: BaseModelName
    parameters: Annotated[int, Field(ge=1, le=10**13, examples=[6_738_415_616])]
    context_length: Annotated[int, Field(ge=1, le=10**8, examples=[4096])]
    vocabulary: Annotated[int, Field(ge=1, le=10**8, examples=[32_000])]


class BaseModelView(NewBaseModel):
    """One that is known."""

    created_at: Moment
