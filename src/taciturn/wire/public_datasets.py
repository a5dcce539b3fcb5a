"""Public data sets: text that somebody declares public, to be learned from at no cost.

They have no privacy unit and no budget, and nothing about them is written to a ledger: no guarantee
covers them. Whoever may ask for a fit may name one beside private data.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from taciturn.wire.values import Line, Moment, Name, WireValue


class NewPublicDataset(WireValue):
    """A reference to text that anybody may read, and why that is so. It never changes."""

    name: Annotated[
        Name, Field(description="Never that of a private data set, nor of another public one.")
    ]
    source: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2000,
            description="Path, glob, or URL of JSONL, CSV or Parquet; or SQL: "
            "postgresql+psycopg://HOST/DB#TABLE. Without credentials: the worker has its own.",
            examples=["s3://open/case-reports.jsonl"],
        ),
    ]
    licence: Annotated[
        Line, Field(description="Licence of the text.", min_length=1, examples=["CC BY 4.0"])
    ]
    origin: Annotated[
        Line,
        Field(
            description="Where the text comes from, and why anybody may read all of it.",
            min_length=1,
            examples=["case reports of PubMed Central's open subset"],
        ),
    ]
    text_field: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=200,
            description="Its column of text; default: as in the private data, or the one it has.",
        ),
    ] = None
    description: Line | None = None


class PublicDatasetView(WireValue):
    """A public data set, as everybody who may read data sets sees it."""

    name: Name
    licence: str
    origin: str
    text_field: str | None
    description: str | None
    declared_by: Annotated[str, Field(description="Who says that it is public.")]
    source: Annotated[
        str | None, Field(description="For who declared it, administrators and auditors only.")
    ] = None
    removed: Annotated[bool, Field(description="No new job may use it.")] = False
    created_at: Moment
