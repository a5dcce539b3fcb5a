"""Reads of what a dataset has left: records of the audit log, found by dataset.

A record names a path, and which dataset is behind a job or a model takes a look into their tables.
The leader takes that look once for each record, a minute after it was written, and keeps the answer
in `dataset_reads`, up to the record that `dataset_reads_end` names. Records behind that one are
looked at when a page asks, so that nothing is missing meanwhile. So a page costs the same however
many jobs a dataset has.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from sqlalchemy import Connection, Row, Select, insert, select, update

from taciturn.server.context import Gateway
from taciturn.server.identity.permissions import Action
from taciturn.server.schema.tables import (
    audit_log,
    dataset_reads,
    dataset_reads_end,
    datasets,
    jobs,
    models,
    policies,
    users,
)
from taciturn.wire.datasets import DisclosureKind

_READS = [action.value for action in Action if action.value.endswith((":read", ":use"))]
_KINDS: Mapping[str, Mapping[str, DisclosureKind]] = {
    "/v1/jobs": {"": "job", "result": "result", "events": "events", "checkpoints": "job"},
    "/v1/models": {"": "model", "certificate": "certificate"},
    "/v1/datasets": {"": "terms", "preview": "preview", "selections": "preview"},
    "/jobs": {
        "": "job",
        "live": "events",
        "progress": "events",
        "email": "email",
        "webhook": "webhook",
    },
    "/models": {"": "model", "evidence": "figures", "verifications": "certificate"},
    "/datasets": {"": "terms", "selections": "preview", "checks": "audit"},
}
"""Paths under which something of a dataset is read, in the API and in the console; the last two of
a job are on record where a notification told of it."""
_FILES: Mapping[str, DisclosureKind] = {
    "certificate.json": "certificate",
    "samples.jsonl": "texts",
    "synthetic.parquet": "records",
    "evaluation.json": "figures",
    "audit.json": "audit",
    "schema.json": "columns",
}
SETTLED_MS = 60_000
"""Age at which no record of an earlier number can come any more; a transaction takes less."""
_AT_ONCE = 2000


@dataclass(frozen=True, slots=True)
class ReadThing:
    """Something that a path leads to.

    Attributes:
        room: "jobs", "models" or "datasets"; `name` is an id, or a dataset's name.
    """

    kind: DisclosureKind
    room: str
    name: str
    file: str | None = None


def thing_at(path: str) -> ReadThing | None:
    """Return what a path gives of a dataset; None for one that gives nothing of any."""
    # OpenAI's names: its files are datasets here, its fine-tuning jobs are jobs.
    path = re.sub(r"^(/openai)?/v1/files/", "/v1/datasets/", path)
    path = re.sub(r"^(/openai)?/v1/fine_tuning/jobs/", "/v1/jobs/", path)
    versioned = path.startswith("/v1/")
    room, _, rest = path.removeprefix("/v1/" if versioned else "/").partition("/")
    name, _, end = rest.partition("/")
    kinds = _KINDS.get(f"/v1/{room}" if versioned else f"/{room}", {})
    if not name:
        return None
    if end in kinds:
        return ReadThing(kinds[end], room, name)
    file = end.removeprefix("files/")
    if versioned and room != "datasets" and kinds and file and file != end:
        return ReadThing(_FILES.get(file, "model"), room, name, file)
    return None


@dataclass(frozen=True, slots=True)
class Reads:
    """Finds them; the leader keeps what was found."""

    gateway: Gateway

    def before(
        self, connection: Connection, dataset: str, owner: str, entry: int, fetch: int
    ) -> list[Row[Any]]:
        """Return reads of a dataset with numbers below `entry`, the newest first, but for those of
        its owner, by name."""
        end = _end(connection)
        query = _answered().where(audit_log.c.actor != f"user:{owner}").limit(_AT_ONCE)
        lines: list[Row[Any]] = []
        position, more = entry, True
        while more and len(lines) < fetch:
            between = (audit_log.c.id > end, audit_log.c.id < position)
            rows = connection.execute(query.where(*between)).all()
            sources = _datasets_of(connection, rows)
            lines += [row for row in rows if dataset in sources[row.entry]]
            more = len(rows) == _AT_ONCE
            position = rows[-1].entry if more else position
        if len(lines) < fetch:
            entries = (
                select(dataset_reads.c.entry)
                .where(dataset_reads.c.dataset == dataset)
                .where(dataset_reads.c.entry < min(entry, end + 1))
                .order_by(dataset_reads.c.entry.desc())
                .limit(fetch - len(lines))
            )
            earlier = _records().where(audit_log.c.id.in_(entries)).order_by(audit_log.c.id.desc())
            lines += connection.execute(earlier)
        return lines[:fetch]

    def turn(self) -> None:
        """Look at the records that have come since the last turn."""
        while self.gateway.write(self._advance) == _AT_ONCE:
            pass

    def _advance(self, connection: Connection) -> int:
        """Look at some records; returns how many there were. The end is read and written in one
        transaction, so that of two leaders one has to begin again."""
        end = _end(connection)
        query = (
            select(audit_log.c.id, audit_log.c.at_ms).where(audit_log.c.id > end).limit(_AT_ONCE)
        )
        settled_ms = self.gateway.now_ms() - SETTLED_MS
        records = connection.execute(query.order_by(audit_log.c.id))
        settled = [row.id for row in takewhile(lambda row: row.at_ms <= settled_ms, records)]
        if not settled:
            return 0
        between = (audit_log.c.id > end, audit_log.c.id <= settled[-1])
        rows = connection.execute(_answered().where(*between)).all()
        sources = _datasets_of(connection, rows)
        owners = _owners(connection, frozenset[str]().union(*sources.values()))
        lines = [
            {"dataset": dataset, "entry": row.entry}
            for row in rows
            for dataset in sorted(sources[row.entry])
            if row.reader != owners[dataset]
        ]
        if lines:
            connection.execute(insert(dataset_reads), lines)
        if end:
            connection.execute(update(dataset_reads_end).values(entry=settled[-1]))
        else:
            connection.execute(insert(dataset_reads_end).values(id=1, entry=settled[-1]))
        return len(settled)


def _end(connection: Connection) -> int:
    """Return the number of the newest record that was looked at."""
    return int(connection.execute(select(dataset_reads_end.c.entry)).scalar() or 0)


def _records() -> Select[Any]:
    return select(
        audit_log.c.id.label("entry"),
        audit_log.c.at_ms,
        audit_log.c.resource,
        audit_log.c.actor.label("reader"),
    )


def _answered() -> Select[Any]:
    """Records of reads that were answered, the newest first."""
    is_read = audit_log.c.status < 300, audit_log.c.action.in_(_READS)
    return _records().where(*is_read).order_by(audit_log.c.id.desc())


def _owners(connection: Connection, names: frozenset[str]) -> defaultdict[str, str]:
    """Return the owners of datasets, as the audit log names them; nobody for a dataset that is not
    there."""
    query = (
        select(datasets.c.name, users.c.name.label("owner"))
        .join(policies, policies.c.namespace == datasets.c.namespace)
        .join(users, users.c.id == policies.c.owner_id)
        .where(datasets.c.name.in_(sorted(names)))
    )
    rows = connection.execute(query) if names else ()
    return defaultdict(str, {row.name: f"user:{row.owner}" for row in rows})


def _datasets_of(connection: Connection, rows: Sequence[Row[Any]]) -> dict[int, frozenset[str]]:
    """Return the datasets behind each record: a job may read one, and use a model of another."""
    things = {row.entry: thing_at(row.resource) for row in rows}
    sources: dict[tuple[str, str], frozenset[str]] = {}
    for room, query in (("jobs", _of_jobs), ("models", _of_models)):
        names = {thing.name for thing in things.values() if thing and thing.room == room}
        for row in connection.execute(query(names)) if names else ():
            sources[room, row.id] = frozenset(name for name in row[1:] if name is not None)
    return {
        entry: frozenset()
        if thing is None
        else frozenset({thing.name})
        if thing.room == "datasets"
        else sources.get((thing.room, thing.name), frozenset())
        for entry, thing in things.items()
    }


def _of_jobs(names: Iterable[str]) -> Select[Any]:
    fits = jobs.alias("fits")
    return (
        select(jobs.c.id, jobs.c.dataset, fits.c.dataset)
        .outerjoin(models, models.c.id == jobs.c.model_id)
        .outerjoin(fits, fits.c.id == models.c.job_id)
        .where(jobs.c.id.in_(sorted(names)))
    )


def _of_models(names: Iterable[str]) -> Select[Any]:
    joined = select(models.c.id, jobs.c.dataset).join(jobs, jobs.c.id == models.c.job_id)
    return joined.where(models.c.id.in_(sorted(names)))
