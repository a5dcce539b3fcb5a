"""Datasets and policies: references to private rows, and the terms under which they may be used."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from taciturn.wire.jobs import JobKind
from taciturn.wire.values import (
    Delta,
    Epsilon,
    Holder,
    Identifier,
    Line,
    Moment,
    Name,
    PolicyLine,
    WireValue,
)

Units = Annotated[
    int,
    Field(
        ge=1,
        le=10**9,
        description="Number of privacy units, declared by the owner: public by policy.",
        examples=[1100],
    ),
]


class DatasetState(StrEnum):
    """State of a dataset; only a ready one can be fitted on."""

    PROBING = "probing"
    UNCONFIRMED = "unconfirmed"
    READY = "ready"
    REFUSED = "refused"


class ColumnView(WireValue):
    """A column's name and Arrow type: what the probe found, and all that is known of the rows."""

    name: Annotated[str, Field(max_length=200)]
    type: Annotated[str, Field(max_length=4000)]


class SchemaFile(WireValue):
    """`schema.json` of a probe: names and types of columns, and nothing of what is in them."""

    columns: Annotated[tuple[ColumnView, ...], Field(max_length=2000)]


class FoundColumns(WireValue):
    """Columns that a worker found, for the dataset's owner alone until they confirm them.

    Attributes:
        named_by: what their names are a guess from: the first line of text files, which may as well
            be a row; the keys of rows of JSON; or the schema of files or a table.
        doubts: why some do not look like names.
    """

    columns: tuple[ColumnView, ...]
    named_by: Literal["first line", "keys of rows", "schema", "first line, keys of rows or schema"]
    doubts: tuple[str, ...]


ColumnName = Annotated[str, Field(min_length=1, max_length=200)]
Columns = Annotated[
    tuple[ColumnName, ...],
    Field(
        min_length=1,
        max_length=2000,
        description="Names of all columns, in their order: public from then on.",
        examples=[["id", "context"]],
    ),
]
Header = Annotated[
    bool,
    Field(
        description="Whether text files (CSV, TSV) begin with a line of names. If not, columns are "
        "named as stated, or column_1, column_2, ...; the first line is a row like any other."
    ),
]


class StatedColumn(WireValue):
    """A column as its owner states it. The type is needed where it holds names itself."""

    name: ColumnName
    type: Annotated[str | None, Field(max_length=4000)] = None


class StatedColumns(WireValue):
    """Columns as their owner states them; with it they become public."""

    columns: Annotated[tuple[StatedColumn, ...] | None, Field(min_length=1, max_length=2000)] = None
    header: Header = True


class PreviewView(WireValue):
    """Invented or paid-for rows in the shape of the real ones; never a real one."""

    policy: PolicyLine
    columns: tuple[ColumnView, ...]
    rows: tuple[dict[str, Any], ...]


class BudgetTerms(WireValue):
    """The joint budget of a namespace, which holds whoever spends."""

    epsilon: Epsilon
    delta: Delta


class NewDataset(WireValue):
    """A reference to private rows. The gateway never opens it; a worker does, in a job."""

    name: Name
    source: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2000,
            description="Path, glob, or URL of JSONL, CSV or Parquet; or SQL: "
            "postgresql+psycopg://HOST/DB#TABLE. Without credentials: the worker has its own.",
            examples=["s3://hospital/phee.parquet"],
        ),
    ]
    unit: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2000,
            description="Column or row-wise SQL that names the unit: the same in the namespace.",
            examples=["split_part(id,'_',1)"],
        ),
    ]
    namespace: Name
    units: Units
    columns: Annotated[
        Columns | None,
        Field(
            description="Names of all columns. With them the dataset is ready once a worker has "
            "found just these; without, its owner has to confirm what was found."
        ),
    ] = None
    header: Header = True
    budget: Annotated[
        BudgetTerms | None,
        Field(description="Opens the namespace's budget, where it does not exist yet."),
    ] = None
    mock: Annotated[
        tuple[dict[str, Any], ...],
        Field(max_length=200, description="Invented rows for the preview."),
    ] = ()
    description: Line | None = None


class DatasetView(WireValue):
    """A dataset as practitioners see it: terms, schema, state. Nothing computed from rows.

    Attributes:
        columns: as the owner has stated or confirmed them; null before.
    """

    name: Name
    namespace: Name
    state: DatasetState
    unit: str
    units: int
    columns: tuple[ColumnView, ...] | None
    owner: str
    description: str | None
    policy: PolicyLine
    preview: Literal["mock", "schema", "synthetic"]
    source: Annotated[str | None, Field(description="For its owner and auditors only.")] = None
    header: Header = True
    found: Annotated[
        FoundColumns | None, Field(description="To be confirmed; for its owner only.")
    ] = None
    created_at: Moment


class DatasetChange(WireValue):
    """Changes of a dataset; null leaves as it is. Source, unit and units never change:
    what was promised about them is in the world."""

    description: Line | None = None
    mock: Annotated[tuple[dict[str, Any], ...] | None, Field(max_length=200)] = None


class SyntheticPreview(WireValue):
    """A job of kind synthesize whose records become the preview."""

    job: Identifier
    column: Annotated[
        str | None,
        Field(
            max_length=200,
            description="The column that the texts stand for; null: each text is a JSON object of "
            "columns.",
        ),
    ] = None


class Selection(WireValue):
    """SQL to try on the preview."""

    select: Annotated[str, Field(min_length=1, max_length=10_000)]


class PolicyTerms(WireValue):
    """The terms of a namespace, as its owner sets them."""

    budget: BudgetTerms
    job_epsilon: Annotated[
        Epsilon | None, Field(description="The most that one job may cost; null: the budget.")
    ] = None
    models: Annotated[
        tuple[Annotated[str, Field(max_length=300)], ...],
        Field(description="Base models that may be fitted, `*` as wildcard.", examples=[["*"]]),
    ] = ("*",)
    kinds: tuple[JobKind, ...] = tuple(JobKind)
    approvers: Annotated[
        tuple[Holder, ...],
        Field(description="Who may approve exceptions; at least two people decide, not the asker."),
    ] = ()
    expires_at: Moment | None = None
    job_hours: Annotated[
        float | None,
        Field(
            gt=0,
            le=8760,
            description="How long a job may run; null: as long as the gateway allows.",
        ),
    ] = None
    reset_wait_h: Annotated[
        float,
        Field(
            ge=0,
            le=90 * 24,
            description="Hours for which nobody approves, changes terms, grants or reads incidents "
            "here after an administrator has changed how they get in: let them in, gave them a "
            "role or a group, or made the link by which their password was set. Does not count "
            "for changes before the namespace was opened.",
        ),
    ] = 24.0


class PolicyView(PolicyTerms):
    """The terms in force."""

    namespace: Name
    owner: str
    version: int
    created_at: Moment
    updated_at: Moment


class GrantTerms(WireValue):
    """Share of a namespace's budget that one user or group may spend."""

    epsilon: Epsilon
    delta: Delta
    expires_at: Moment | None = None


class GrantView(GrantTerms):
    """A grant, and how much of it is gone."""

    namespace: Name
    holder: Holder
    charged: float
    taken: float
    revoked_at: Moment | None = None


class BudgetView(WireValue):
    """A namespace's or a grant's balance, in shares of it: charged is spent for good, taken is
    charged or held by jobs."""

    namespace: Name
    epsilon: float
    delta: float
    charged: float
    taken: float
    exceptions: Annotated[
        int, Field(description="Releases without guarantee, about which the budget says nothing.")
    ]
    grants: tuple[GrantView, ...] = ()


DisclosureKind = Literal[
    "model",
    "certificate",
    "texts",
    "records",
    "figures",
    "audit",
    "columns",
    "result",
    "job",
    "events",
    "preview",
    "terms",
    "email",
    "webhook",
]


class DisclosureView(WireValue):
    """Something about a dataset that left: a worker released it, somebody has read it, or a
    notification told them.

    Attributes:
        step: `released` by a worker, for those who may have it; `read` by somebody; or `sent` to
            them, each time that it was tried.
        kind: what it is.
        names: of files, or of what was read.
        to: who asked for the job, or who has read it, as the audit log names them.
        job, model: what it came of; null where it is about the dataset alone.
        policy: under which it was released.
        size_bytes: of released files.
        tracked: the gateway's MLflow server has the job's plan, steps and figures as well.
    """

    at: Moment
    step: Literal["released", "read", "sent"]
    kind: DisclosureKind
    names: tuple[str, ...]
    to: str
    job: str | None = None
    model: str | None = None
    policy: PolicyLine | None = None
    size_bytes: int | None = None
    tracked: bool = False
