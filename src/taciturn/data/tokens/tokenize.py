"""Rows to tokenised privacy units, once, on disk: the way in for everything that trains.

    source -> select -> privacy unit -> bound per unit -> tokens -> Arrow IPC

Each stage is a stream over record batches; nothing holds all rows.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from taciturn.data.bounding import FIRST, grouped, single_record_units
from taciturn.data.declared import DeclaredRows, declared_records
from taciturn.data.fields import text_columns
from taciturn.data.rows import Rows, Skipped
from taciturn.data.schema_fields import Fields, choose_fields
from taciturn.data.source import open_rows
from taciturn.data.sql.run import selected, with_unit
from taciturn.data.tokens.encoding import DeclaredEncoder, EncodedRecords, Tokenizer, encode_batch
from taciturn.data.tokens.origin import Origin
from taciturn.data.tokens.planted import PlantedUnits, plant
from taciturn.data.tokens.probing import check_tokenizer
from taciturn.data.tokens.ready import TokenRows, token_records
from taciturn.data.tokens.store import TokenizedDataset, TokenWriter, check_whole
from taciturn.errors import CheckpointError, OutputError
from taciturn.spec import DataSpec

SKIPPED = "skipped.json"
"""How many rows of DeclaredRows contribute nothing; private, as all in the folder."""


def prepare(
    data: object,
    spec: DataSpec,
    tokenizer: Tokenizer,
    max_tokens: int,
    folder: Path,
    seed: int,
    planted: PlantedUnits | None = None,
    vocabulary: int | None = None,
) -> TokenizedDataset:
    """Tokenise `data` into `folder`, which appears complete or not at all.

    Args:
        data: whatever `open_rows` takes, DeclaredRows or TokenRows.
        spec: how rows become records and records units; public.
        tokenizer: the model's own.
        max_tokens: tokens kept of a record; public.
        folder: made by this call. It will hold private data: readable by its owner only.
        seed: keys which records a unit keeps if it has more than `spec.max_records_per_unit`.
        planted: canaries, which follow the rows' units.
        vocabulary: number of token ids that the model knows.

    Raises:
        DataError: any of its kinds; no message quotes a row or a number derived from rows.
        ModelError: tokenizer or chat template cannot be used, whatever the rows; none was read.
        OutputError: `folder` exists, the disk is full or cannot be written.
        TimeLimitError: of DeclaredRows, whose time is over.
    """
    if max_tokens < 2:
        raise ValueError(f"max_tokens={max_tokens} must be at least 2; raise it")
    origin = Origin.of(data, spec, tokenizer, max_tokens, seed)
    with _appearing_at_once(folder) as partial:
        skipped = _skipped(data)
        rows, fields = _records(data, spec, skipped)
        check_tokenizer(tokenizer, fields, vocabulary)
        if spec.privacy_unit is None:
            batches = single_record_units(rows)
        else:
            spill = partial / "spill"
            spill.mkdir(mode=0o700)
            batches = grouped(rows, spec.max_records_per_unit, seed, spill)
        with _writing(partial, origin.public_text()) as writer:
            if isinstance(data, DeclaredRows):
                declared = DeclaredEncoder(fields, tokenizer, max_tokens, vocabulary, skipped)
                _write(batches, declared.encode, writer)
            else:
                _write(
                    batches,
                    lambda batch: encode_batch(batch, fields, tokenizer, max_tokens, vocabulary),
                    writer,
                )
            origin.model_copy(update={"rows": writer.content()}).write(partial)
            if planted is not None:
                plant(planted, writer, fields.kind, tokenizer, max_tokens, partial)
        shutil.rmtree(partial / "spill", ignore_errors=True)
        if isinstance(data, DeclaredRows):
            (partial / SKIPPED).write_text(json.dumps({"rows": skipped.rows}), encoding="utf-8")
    return TokenizedDataset.open(folder)


def _skipped(data: object) -> Skipped:
    if isinstance(data, DeclaredRows):
        return Skipped.within(data.limit_s, data.n_units)
    return Skipped()


def check_prepared(
    data: object, spec: DataSpec, tokenizer: Tokenizer, max_tokens: int, folder: Path, seed: int
) -> None:
    """Raise CheckpointError unless `prepare` would make of these arguments what is in `folder`.

    The public part is compared first. Then rows: those of local files that have not changed since
    are the same; all others are prepared again and compared. Declared rows are not read again: they
    are what the job was given, and a job that failed over one would tell of it.

    Raises also whatever `prepare` does.
    """
    recorded, requested = Origin.read(folder), Origin.of(data, spec, tokenizer, max_tokens, seed)
    check_whole(folder, recorded.public_text())
    recorded.check(requested)
    unchanged = requested.files and requested.files == recorded.files
    if unchanged or isinstance(data, DeclaredRows):
        return
    again = folder.with_name(f"{folder.name}-again")
    shutil.rmtree(again, ignore_errors=True)
    try:
        prepare(data, spec, tokenizer, max_tokens, again, seed)
        same = Origin.read(again).rows == recorded.rows
    finally:
        shutil.rmtree(again, ignore_errors=True)
    if not same:
        raise CheckpointError(
            "the rows are not those that the run was begun with; give the same data to resume it, "
            "or begin anew in another output folder"
        )


def check_source(data: object, spec: DataSpec) -> None:
    """Raise what `prepare` would before it reads a row: no data, no such column, bad SQL."""
    _records(data, spec, Skipped())


def _records(data: object, spec: DataSpec, skipped: Skipped) -> tuple[Rows, Fields]:
    if isinstance(data, DeclaredRows):
        return declared_records(data, spec, skipped)
    if isinstance(data, TokenRows):
        return token_records(data, spec)
    rows = open_rows(data)
    if spec.select is not None:
        rows = selected(rows, spec.select)
    fields = choose_fields(rows.schema, spec)
    if spec.privacy_unit is not None:
        rows = with_unit(rows, spec.privacy_unit, fields.columns)
    return text_columns(rows, fields), fields


def _write(
    batches: Iterator[pa.RecordBatch],
    encode: Callable[[pa.RecordBatch], Iterator[EncodedRecords]],
    writer: TokenWriter,
) -> None:
    for batch in batches:
        first = batch.column(FIRST).to_numpy(zero_copy_only=False)
        for records in encode(batch):
            count = len(records.lengths)
            writer.add(records, first[:count])
            first = first[count:]


@contextmanager
def _writing(folder: Path, public_spec: str) -> Iterator[TokenWriter]:
    """A writer of `folder`, finished at the end of the block unless it fails."""
    writer = TokenWriter(folder)
    try:
        yield writer
        writer.close(public_spec)
    finally:
        writer.abandon()


@contextmanager
def _appearing_at_once(folder: Path) -> Iterator[Path]:
    """Yield a private sibling of `folder` that takes its name at the end, or is removed."""
    prefix = f".{folder.name}.partial-"
    with _output_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            raise OutputError(f"{folder} already exists; choose another folder or remove it")
        _remove_abandoned(folder.parent, prefix)
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            with _locked(partial):
                yield partial
                os.rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove what a killed process left: private rows. A living one holds the lock on its own."""
    for partial in parent.iterdir():
        if partial.name.startswith(prefix):
            with suppress(OSError), _locked(partial):
                shutil.rmtree(partial)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder; raises BlockingIOError if another process does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _output_errors(folder: Path) -> Iterator[None]:
    """Errors of reading are DataError by now: an OSError that gets here is about writing."""
    failure: OutputError | None = None
    try:
        yield
    except OSError as error:
        failure = OutputError(
            f"{folder} cannot be written ({error.strerror or type(error).__name__}); nothing was "
            "left behind; free space or choose another folder"
        )
    if failure is not None:
        raise failure
