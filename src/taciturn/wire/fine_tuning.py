"""Requests of OpenAI's fine-tuning API: a job, and a file that an owner uploads.

What the gateway cannot do is refused by name (`server/fine_tuning/requests.py`): an option that is
silently ignored would make the model, or its price, something else than was asked for.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from taciturn.wire.datasets import ColumnName, Units
from taciturn.wire.values import Delta, Epsilon, Line, Name, WireValue

Term = str | int | float | bool | None
Key = Annotated[str, Field(max_length=64)]
Terms = Annotated[dict[Key, Term], Field(max_length=64)]


class MethodTerms(WireValue):
    """Hyperparameters of a method: OpenAI's own and the gateway's terms."""

    hyperparameters: Terms | None = None


class FineTuningMethod(WireValue):
    """Way of fine-tuning; what stands under another type than the one asked for is refused."""

    type: Annotated[str, Field(max_length=40, examples=["supervised"])]
    supervised: Annotated[
        MethodTerms | None,
        Field(examples=[{"hyperparameters": {"n_epochs": 3, "target_epsilon": 3}}]),
    ] = None
    dpo: MethodTerms | None = None
    reinforcement: dict[str, Any] | None = None


class NewFineTuningJob(WireValue):
    """A fine-tuning job as OpenAI's clients ask for it."""

    model: Annotated[
        str,
        Field(
            min_length=1,
            max_length=300,
            description="Base model that is registered here.",
            examples=["taciturn/tiny-medical"],
        ),
    ]
    training_file: Annotated[
        str, Field(max_length=100, description="Name of a dataset.", examples=["phee"])
    ]
    method: FineTuningMethod | None = None
    hyperparameters: Annotated[
        Terms | None, Field(description="As older clients give them, without a method.")
    ] = None
    metadata: Annotated[
        dict[Key, Annotated[str, Field(max_length=512)]] | None,
        Field(
            max_length=16, description="The gateway's terms, for clients that take no others above."
        ),
    ] = None
    seed: Annotated[
        int | None, Field(description="Seeds initial adapter weights; never noise or sampling.")
    ] = None
    suffix: Annotated[str | None, Field(max_length=200, description="A name for the model.")] = None
    validation_file: Annotated[str | None, Field(max_length=100)] = None
    integrations: Annotated[list[Any] | None, Field(max_length=5)] = None


class NewUpload(WireValue):
    """Terms of a file that its owner uploads: those of any dataset that is registered.

    Attributes:
        columns: names of columns beside those of the form of the records and the unit's.
    """

    purpose: Literal["fine-tune"]
    namespace: Name
    privacy_unit: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2000,
            description="Column or row-wise SQL that names the protected unit; `one record`: each "
            "record is a unit of its own.",
        ),
    ]
    units: Units
    columns: Annotated[tuple[ColumnName, ...], Field(max_length=100)] = ()
    epsilon: Annotated[
        Epsilon | None, Field(description="With delta: opens the namespace's budget.")
    ] = None
    delta: Delta | None = None
    description: Line | None = None
