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


class MachinePlan(WireValue):
    """The machine that a fit would get, by an estimate of the memory that it needs.

    Attributes:
        text: kind and number of machines, in words; or why there is none.
        fits: there is a machine that is large enough, as far as the gateway knows.
        memory_bytes: of each process: on a GPU where there are any, else of the machine.
        price_per_hour, currency: of all machines together; null where there is no price.
        cost: for the estimated duration, without the time until the machines are there.
    """

    text: Annotated[str, Field(max_length=400)]
    fits: bool = True
    memory_bytes: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    nodes: Annotated[int, Field(ge=1)] = 1
    gpus: Annotated[int, Field(ge=0, description="Of each machine.")] = 0
    price_per_hour: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    currency: Annotated[str | None, Field(max_length=10)] = None
    cost: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None


class MachineWish(WireValue):
    """Overrides what the memory estimate would choose."""

    pool: Annotated[Name | None, Field(description="A kind of machine that the gateway has.")] = (
        None
    )
    gpus: Annotated[int | None, Field(ge=0, le=64, description="GPUs in all.")] = None
    gpu_memory_gib: Annotated[
        float | None, Field(gt=0, le=1024, description="Memory of each GPU, at least.")
    ] = None
