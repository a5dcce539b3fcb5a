"""From rows to units on disk, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars
import pyarrow as pa
import pyarrow.parquet
import pytest

from taciturn.data.tokens import store
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.data.tokens.tokenize import prepare
from taciturn.errors import MissingColumnError, OutputError, RowError, TaciturnError
from taciturn.spec import DataSpec, FitSpec

pytestmark = pytest.mark.usefixtures("kept_processes")

NOTES = [
    {"id": f"{patient}_{note}", "text": f"Patient {patient} had visit number {note}."}
    for note in range(5)
    for patient in range(6)
]
BY_PATIENT = DataSpec(privacy_unit="split_part(id, '_', 1)", max_records_per_unit=3)


@pytest.fixture(scope="module")
def tokenizer(tiny_medical: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_medical)


def texts(dataset: TokenizedDataset, tokenizer: Any) -> list[list[str]]:
    return [
        [
            tokenizer.decode(record.input_ids, skip_special_tokens=True)
            for record in dataset.records(n)
        ]
        for n in range(dataset.n_units)
    ]


def test_units_are_contiguous_and_bounded(tmp_path: Path, tokenizer: Any) -> None:
    dataset = prepare(NOTES, BY_PATIENT, tokenizer, 64, tmp_path / "data", seed=0)
    assert (dataset.n_units, dataset.n_records) == (6, 18)
    own = {text: row["id"].split("_")[0] for row in NOTES for text in [row["text"]]}
    units = [{own[text] for text in unit} for unit in texts(dataset, tokenizer)]
    assert all(len(names) == 1 for names in units)
    assert len(set.union(*units)) == 6


def test_every_record_is_a_unit_by_default(tmp_path: Path, tokenizer: Any) -> None:
    dataset = prepare(NOTES, DataSpec(), tokenizer, 64, tmp_path / "data", seed=0)
    assert texts(dataset, tokenizer) == [[row["text"]] for row in NOTES]


def test_text_that_is_not_utf8_is_refused_where_it_is_used(tmp_path: Path, tokenizer: Any) -> None:
    """Arrow's and Parquet's readers do not look: cp1252 written as text, for example."""
    wrong = pa.array(["Müller".encode("cp1252"), b"b", b"c"]).view(pa.string())
    table = pa.table({"id": ["1", "2", "3"], "text": ["a", "b", "c"], "wrong": wrong})
    pa.parquet.write_table(table, tmp_path / "notes.parquet")
    for data in (table, tmp_path / "notes.parquet"):
        for used in ({"privacy_unit": "wrong"}, {"text_field": "wrong"}):
            with pytest.raises(RowError, match="UTF-8"):
                prepare(data, DataSpec(**used), tokenizer, 64, tmp_path / "data", seed=0)
    by_id = DataSpec(privacy_unit="id")
    assert prepare(table, by_id, tokenizer, 64, tmp_path / "data", seed=0).n_units == 3


def test_categories_of_polars_are_text(tmp_path: Path, tokenizer: Any) -> None:
    frame = polars.DataFrame({"text": ["a", "b", "a"], "id": ["1", "2", "2"]})
    for kind in (polars.Categorical, polars.Enum(["a", "b", "1", "2"])):
        spec = DataSpec(privacy_unit="id", text_field="text")
        data = frame.with_columns(polars.all().cast(kind))
        dataset = prepare(data, spec, tokenizer, 64, tmp_path / str(kind)[:4], seed=0)
        assert sorted(map(len, texts(dataset, tokenizer))) == [1, 2]


def test_select_comes_first(tmp_path: Path, tokenizer: Any) -> None:
    spec = DataSpec(select="split_part(id, '_', 1) AS patient, upper(text) AS text")
    by_patient = spec.model_copy(update={"privacy_unit": "patient"})
    dataset = prepare(NOTES, by_patient, tokenizer, 64, tmp_path / "data", seed=0)
    assert dataset.n_units == 6
    assert all(text.isupper() for unit in texts(dataset, tokenizer) for text in unit)
    gone = spec.model_copy(update={"privacy_unit": "lower(id)"})
    with pytest.raises(MissingColumnError, match="add it to select"):
        prepare(NOTES, gone, tokenizer, 64, tmp_path / "other", seed=0)


def test_dropping_a_patient_drops_that_unit_only(tmp_path: Path, tokenizer: Any) -> None:
    """The neighbour test: all other units keep the same records."""
    rest = [row for row in NOTES if not row["id"].startswith("4_")]
    whole, left = (
        prepare(data, BY_PATIENT, tokenizer, 64, tmp_path / str(len(data)), seed=3)
        for data in (NOTES, rest)
    )
    gone = [unit for unit in texts(whole, tokenizer) if "Patient 4" not in unit[0]]
    assert texts(left, tokenizer) == gone


def test_the_fingerprint_is_that_of_data_spec_and_seed(tmp_path: Path, tokenizer: Any) -> None:
    def fingerprint(name: str, data: object, spec: DataSpec, tokens: int, seed: int) -> str:
        return prepare(data, spec, tokenizer, tokens, tmp_path / name, seed).fingerprint

    first = fingerprint("a", NOTES, BY_PATIENT, 64, 0)
    fit = FitSpec(**BY_PATIENT.model_dump(), target_epsilon=3, batch_size=2)
    assert fingerprint("b", NOTES, fit, 64, 0) == first
    others = [
        fingerprint("c", NOTES[1:], BY_PATIENT, 64, 0),
        fingerprint("d", NOTES, BY_PATIENT, 63, 0),
        fingerprint("e", NOTES, BY_PATIENT, 64, 1),
    ]
    assert len({first, *others}) == 4


def test_only_the_owner_can_read_the_folder(tmp_path: Path, tokenizer: Any) -> None:
    prepare(NOTES, BY_PATIENT, tokenizer, 64, tmp_path / "data", seed=0)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "meta.json",
        "origin.json",
        "tokens.arrow",
        "units.arrow",
    ]


def test_bad_rows_leave_nothing_behind(tmp_path: Path, tokenizer: Any) -> None:
    for bad in ({"id": "9_9", "text": " "}, {"id": None, "text": "x"}):
        with pytest.raises(RowError):
            prepare([*NOTES, bad], BY_PATIENT, tokenizer, 64, tmp_path / "data", seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.TokenWriter, "_flush", full)
    with pytest.raises(OutputError, match=r"No space left.*free space"):
        prepare(NOTES, BY_PATIENT, tokenizer, 64, tmp_path / "data", seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        prepare(NOTES, DataSpec(), tokenizer, 64, tmp_path / "file" / "data", seed=0)
    with pytest.raises(OutputError, match="already exists"):
        prepare(NOTES, DataSpec(), tokenizer, 64, tmp_path / "file", seed=0)


def test_less_than_two_tokens_is_a_mistake_of_the_caller(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="max_tokens=1"):
        prepare(NOTES, DataSpec(), tokenizer, 1, tmp_path / "data", seed=0)


_PREPARE = """
import resource, signal, sys
from pathlib import Path
import pyarrow as pa
from taciturn.data.tokens.tokenize import prepare
from taciturn.spec import DataSpec

class Letters:
    bos_token_id = eos_token_id = None
    def __call__(self, texts, **_):
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

def rows():
    for n in range(10**6):
        if n == 3:
            print("reading", flush=True)
        yield [{"id": f"{n}_{i}", "text": "note " * words} for i in range(1000)]

# Whoever runs the tests in a shell's background has them started with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, limit, words = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
schema = pa.schema([("id", pa.string()), ("text", pa.string())])
batches = (pa.RecordBatch.from_pylist(part, schema) for part in rows())
reader = pa.RecordBatchReader.from_batches(schema, batches)
prepare(reader, DataSpec(privacy_unit="id"), Letters(), 16, folder, 0)
"""


@contextmanager
def preparing(
    folder: Path, root: Path, limit_bytes: int = 0, words: int = 1
) -> Iterator[subprocess.Popen[str]]:
    """A process that is reading endless rows."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-c", _PREPARE, str(folder), str(limit_bytes), str(words)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        try:
            yield process
        finally:
            process.kill()  # one that ignored its signal would go on for ever


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, root: Path) -> None:
    with preparing(tmp_path / "data", root) as process:
        assert len(list(tmp_path.iterdir())) == 1
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_leaves_nothing_behind(tmp_path: Path, root: Path) -> None:
    """The system's limit on a file's size stands in for a full disk: the write itself fails."""
    with preparing(tmp_path / "data", root, limit_bytes=100_000, words=400) as process:
        _, errors = process.communicate(timeout=240)
    assert "OutputError" in errors.splitlines()[-1]
    assert "note note" not in errors
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(
    tmp_path: Path, root: Path, tokenizer: Any
) -> None:
    with preparing(tmp_path / "data", root) as process:
        prepare(NOTES, DataSpec(), tokenizer, 16, tmp_path / "other", seed=0)
        (partial,) = (path for path in tmp_path.iterdir() if path.name != "other")
        prepare(NOTES, DataSpec(), tokenizer, 16, tmp_path / "data", seed=0)
        assert partial.exists()  # its owner lives
        shutil.rmtree(tmp_path / "data")
        process.kill()
        process.communicate(timeout=240)
    assert partial.exists()
    prepare(NOTES, DataSpec(), tokenizer, 16, tmp_path / "data", seed=0)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "other"}


def test_no_error_of_a_library_gets_out(tmp_path: Path, tokenizer: Any) -> None:
    """Odd tables end in our own error tree or in a data set, never in Arrow's or DuckDB's."""
    odd = [
        pa.table({"text": pa.array([1, 2])}),
        pa.table({"text": pa.nulls(2)}),
        pa.table({"text": pa.array([["a"], ["b"]])}),
        pa.table({"text": pa.array([b"\xff", b"a"])}),
        pa.table({"text": pa.array(["a", "b"]).dictionary_encode()}),
        pa.table({"text": pa.array(["a", "b"], pa.string_view())}),
        pa.table({"text": pa.array([1.5, None], pa.float16())}),
        pa.table({"": pa.array(["a"]), "text": pa.array(["b"])}),
    ]
    for number, table in enumerate(odd):
        for unit in (None, "text", "upper(text)"):
            folder = tmp_path / f"{number}-{unit}"
            try:
                prepare(table, DataSpec(privacy_unit=unit), tokenizer, 16, folder, 0)
            except TaciturnError:
                assert not folder.exists()


def test_reports_of_adverse_drug_events(tmp_path: Path, tokenizer: Any, shared: Path) -> None:
    """PHEE: sentences of one report share the part of their id before the underscore."""
    source = shared / "phee" / "train.jsonl"
    spec = DataSpec(
        text_field="context", privacy_unit="split_part(id,'_',1)", max_records_per_unit=4
    )
    dataset = prepare(source, spec, tokenizer, 128, tmp_path / "data", seed=0)
    assert dataset.n_units == 1108
    assert max(len(dataset.lengths(unit)) for unit in range(dataset.n_units)) == 4


def test_random_access_is_cheap(tmp_path: Path, tokenizer: Any) -> None:
    """A thousand units in well under a second, also on a busy machine."""
    texts = [f"note {n}" for n in range(30_000)]
    dataset = prepare(texts, DataSpec(), tokenizer, 16, tmp_path / "data", seed=0)
    start = time.perf_counter()
    records = [record for unit in range(0, 30_000, 30) for record in dataset.records(unit)]
    assert time.perf_counter() - start < 1
    assert len(records) == 1000
