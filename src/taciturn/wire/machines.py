"""The machine that a requester asks for; without it, the gateway takes what the plan needs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from taciturn.wire.values import Name, WireValue


class MachineWish(WireValue):
    """Overrides what the memory estimate would choose."""

    pool: Annotated[Name | None, Field(description="A kind of machine that the gateway has.")] = (
        None
    )
    gpus: Annotated[int | None, Field(ge=0, le=64, description="GPUs in all.")] = None
    gpu_memory_gib: Annotated[
        float | None, Field(gt=0, le=1024, description="Memory of each GPU, at least.")
    ] = None
