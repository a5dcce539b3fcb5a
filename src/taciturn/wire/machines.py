"""The machine that a requester asks for; without it, the gateway takes what the plan needs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from taciturn.wire.values import Name, WireValue


class MachineUse(WireValue):
    """A machine that a job had, once it is known how that ended.

    Attributes:
        node_seconds: in whole minutes: how long a job took to the second is not for everybody.
        at_most: nobody saw when it ended: it may have been less.
        cost: by the gateway's price list; null where there is no price.
    """

    node: Annotated[str, Field(max_length=253)]
    ended: Annotated[
        Literal["released", "kept", "reused"],
        Field(description="It is gone; it stays, free again; or it serves another job."),
    ]
    node_seconds: Annotated[int, Field(ge=0)]
    at_most: bool = False
    cost: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    currency: Annotated[str | None, Field(max_length=10)] = None


class MachineWish(WireValue):
    """Overrides what the memory estimate would choose."""

    pool: Annotated[Name | None, Field(description="A kind of machine that the gateway has.")] = (
        None
    )
    gpus: Annotated[int | None, Field(ge=0, le=64, description="GPUs in all.")] = None
    gpu_memory_gib: Annotated[
        float | None, Field(gt=0, le=1024, description="Memory of each GPU, at least.")
    ] = None
