"""How much memory does it take to train on data that is larger than what is held at once?

    python bench/data_memory.py --rows 5000000            prepare, then draw one batch of units
    python bench/data_memory.py --rows 5000000 --train    the whole of `LLM.fit`, for one step
    python bench/data_memory.py --rows 200000 --jsonl     read JSONL, here and with DuckDB

Writes short rows to a Parquet file in a temporary folder and says what using them took. `--units`
sets how many privacy units the rows belong to; 0 means that every row is its own.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from taciturn.data.source import open_rows
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.data.tokens.tokenize import prepare
from taciturn.spec import DataSpec

ROWS = 5_000_000
ROWS_PER_GROUP = 100_000
MODEL = Path(__file__).resolve().parent.parent / "src" / "taciturn" / "embedded" / "tiny_medical"

_SUBJECTS = ("The patient", "A newborn", "An elderly man", "A young woman", "The infant")
_EVENTS = ("developed a rash", "became drowsy", "lost weight", "had a seizure", "recovered")
_DRUGS = ("amoxicillin", "valproate", "methotrexate", "phenobarbital", "flecainide")


@dataclass(frozen=True)
class Measurement:
    """What preparing took, and what came out."""

    dataset: TokenizedDataset
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def write_rows(path: Path, rows: int, units: int, seed: int = 0) -> None:
    """Write `rows` short notes with a `patient` column of about `units` different values."""
    schema = pa.schema([("patient", pa.string()), ("text", pa.string())])
    random = np.random.default_rng(seed)
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, ROWS_PER_GROUP):
            count = min(ROWS_PER_GROUP, rows - start)
            choices = random.integers(0, 5, (3, count))
            patients = random.integers(0, max(1, units), count)
            texts = [
                f"{_SUBJECTS[s]} {_EVENTS[e]} after {_DRUGS[d]}, case {start + row}."
                for row, (s, e, d) in enumerate(choices.T)
            ]
            names = [f"patient-{number}" for number in patients]
            writer.write_table(pa.table([names, texts], schema=schema))


def measure(folder: Path, rows: int, units: int, tokenizer: Any) -> Measurement:
    """Prepare freshly written rows in `folder`; peak memory is that of the whole process."""
    source = folder / "rows.parquet"
    write_rows(source, rows, units)
    spec = DataSpec(text_field="text", privacy_unit="patient" if units else None)
    start, cpu_start = time.monotonic(), time.process_time()
    dataset = prepare(source, spec, tokenizer, 64, folder / "data", seed=0)
    seconds, cpu_seconds = time.monotonic() - start, time.process_time() - cpu_start
    draw(dataset)
    return Measurement(dataset, seconds, cpu_seconds, peak_bytes())


def train_one_step(folder: Path, rows: int, units: int) -> str:
    """Fit the embedded model for one private step on freshly written rows; a sentence about it."""
    from taciturn.llm import LLM

    source = folder / "rows.parquet"
    write_rows(source, rows, units)
    start = time.monotonic()
    model = LLM("taciturn/tiny-medical").fit(
        str(source),
        text_field="text",
        privacy_unit="patient" if units else None,
        target_epsilon=3,
        steps=1,
        batch_size=256,
    )
    assert model.privacy is not None
    return (
        f"{rows:,} rows, {model.privacy.n_units:,} units: prepared and trained one step in "
        f"{time.monotonic() - start:.0f} s; peak resident memory of the process was "
        f"{peak_bytes() / 2**30:.2f} GiB."
    )


def draw(dataset: TokenizedDataset, size: int = 1024, seed: int = 0) -> int:
    """Read the tokens of one batch of units; returns how many there are."""
    units = np.random.default_rng(seed).choice(dataset.n_units, min(size, dataset.n_units))
    return sum(
        int(record.input_ids.size) for unit in units for record in dataset.records(int(unit))
    )


def jsonl_seconds(folder: Path, rows: int) -> tuple[float, float]:
    """Return the seconds of CPU time that reading the same JSONL takes here and in DuckDB, on one
    thread; both look at all rows for the types."""
    import duckdb

    write_rows(folder / "rows.parquet", rows, rows)
    path = folder / "rows.jsonl"
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.sql(f"COPY (FROM '{folder}/rows.parquet') TO '{path}' (FORMAT json)")
        start = time.process_time()
        here = sum(batch.num_rows for batch in open_rows(path).batches)
        middle = time.process_time()
        reader = connection.sql(f"FROM read_json('{path}', sample_size=-1)").to_arrow_reader(8192)
        assert here == sum(batch.num_rows for batch in reader) == rows
        return middle - start, time.process_time() - middle


def peak_bytes() -> int:
    """Largest resident memory of this process so far (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Measure once and say so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--jsonl", action="store_true")
    arguments = parser.parse_args()
    if arguments.jsonl:
        with tempfile.TemporaryDirectory() as folder:
            here, duckdb = jsonl_seconds(Path(folder), arguments.rows)
        print(
            f"{arguments.rows:,} rows of JSONL: {here:.2f} s of CPU time here, {duckdb:.2f} s in "
            f"DuckDB, {here / duckdb:.1f} times as much."
        )
        return
    if arguments.train:
        with tempfile.TemporaryDirectory() as folder:
            print(train_one_step(Path(folder), arguments.rows, arguments.units))
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.rows, arguments.units, tokenizer)
    print(
        f"{arguments.rows:,} rows became {found.dataset.n_units:,} units of "
        f"{found.dataset.n_tokens:,} tokens in {found.seconds:.0f} s "
        f"({found.cpu_seconds:.0f} s of CPU time, all cores); "
        f"peak resident memory of the process was {found.peak_bytes / 2**30:.2f} GiB."
    )


if __name__ == "__main__":
    main()
