"""Only files of the list leave, and only with what a file of their name holds."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from taciturn.engine.model import adapter
from taciturn.engine.model.load import load_base
from taciturn.spec import PerformanceSpec
from taciturn.wire.artifacts import ALLOWED
from taciturn.wire.jobs import JobKind
from taciturn.worker import base_files
from taciturn.worker.allowlist import NotReleasableError, check
from taciturn.worker.job import Runner
from worker.fake_gateway import FakeGateway
from worker.jobs import facts, fit_job, notes, request, source, write


@pytest.fixture(scope="module")
def released(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a fit."""
    folder = tmp_path_factory.mktemp("released")
    rows = source(write(notes(), folder / "notes.jsonl"))
    known = facts(str(tiny_llama))
    gateway = FakeGateway(fit_job(request(known.name), known, rows))
    Runner(folder / "root").run(gateway.client())
    assert gateway.outcome.succeeded, gateway.incidents
    out = folder / "files"
    out.mkdir()
    for name, content in gateway.files.items():
        (out / name).write_bytes(content)
    return out


@pytest.fixture
def files(released: Path, tmp_path: Path) -> Path:
    """A copy, to be spoiled."""
    return Path(shutil.copytree(released, tmp_path / "files"))


def refused(path: Path, kind: JobKind = JobKind.FIT, forbidden: tuple[str, ...] = ()) -> str:
    with pytest.raises(NotReleasableError) as caught:
        check(kind, path, forbidden)
    return str(caught.value)


def test_what_a_fit_releases_may_leave(files: Path) -> None:
    for path in files.iterdir():
        check(JobKind.FIT, path, (str(files.parent),))


@pytest.mark.parametrize("kind", JobKind)
@pytest.mark.parametrize("name", ["metrics.jsonl", "journal.jsonl", "canaries.json", "../x", ".x"])
def test_other_names_stay(kind: JobKind, name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / name
    path.write_text("{}")
    assert "is not a file that a job" in refused(path, kind)


def test_files_of_one_kind_of_job_do_not_leave_another(files: Path) -> None:
    refused(files / "adapter_model.safetensors", JobKind.PROBE)


def test_links_stay(files: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (files / "config.json").symlink_to(tmp_path / "secret")
    assert "plain file" in refused(files / "config.json")


def test_larger_files_stay(files: Path) -> None:
    with (files / "README.md").open("ab") as file:
        file.truncate(ALLOWED[JobKind.FIT]["README.md"] + 1)
    assert "larger" in refused(files / "README.md")


def test_report_with_a_further_field_stays(files: Path) -> None:
    path = files / "privacy_report.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "training_loss": 3.2}))
    assert "does not hold" in refused(path)
    fields["libraries"] = {"row": 5}
    path.write_text(json.dumps(fields))
    refused(path)


@pytest.mark.parametrize("name", ["README.md", "report.html"])
def test_words_that_are_not_the_reports_own_stay(name: str, files: Path) -> None:
    path = files / name
    path.write_text(path.read_text() + "\n<!-- 733 rows -->\n")
    refused(path)


def test_paths_of_the_worker_stay(files: Path) -> None:
    path = files / "adapter_config.json"
    path.write_text(json.dumps({"base_model_name_or_path": "/work/space/job_1/model"}))
    check(JobKind.FIT, path)
    assert "folder of this worker" in refused(path, forbidden=("/work/space/job_1",))


def test_tensors_with_metadata_stay(files: Path) -> None:
    path = files / "adapter_model.safetensors"
    save_file({"w": torch.ones(2)}, path, metadata={"format": "pt", "row": "François"})
    assert "metadata" in refused(path)


def test_tensors_with_bytes_of_nobody_stay(files: Path) -> None:
    path = files / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes() + "François".encode())
    assert "no tensor" in refused(path)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "note": "x"}},
        {"w": {"dtype": "TEXT", "shape": [1], "data_offsets": [0, 4]}},
        {"a row": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"w": "x"},
        [],
    ],
)
def test_headers_that_are_none_stay(header: object, files: Path) -> None:
    path = files / "adapter_model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    refused(path)


def test_samples_have_their_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"prompt": "a", "text": "b"}\n')
    check(JobKind.SAMPLE, path)
    path.write_text('{"prompt": "a", "text": "b", "nearest_row": "c"}\n')
    refused(path, JobKind.SAMPLE)


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"text": ["a"], "row": ["b"]}),
        pa.table({"text": [1]}),
        pa.table({"text": ["a"]}).replace_schema_metadata({"rows": "733"}),
    ],
)
def test_synthetic_files_have_their_columns_only(table: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "synthetic.parquet"
    pq.write_table(pa.table({"text": ["a"]}), path)
    check(JobKind.SYNTHESIZE, path)
    pq.write_table(table, path)
    refused(path, JobKind.SYNTHESIZE)


def test_every_file_of_the_list_has_a_check() -> None:
    from taciturn.worker.allowlist import _CHECKS

    assert set(_CHECKS) == {name for kind in JobKind for name in ALLOWED[kind]}


def test_what_is_the_bases_own_has_to_be(files: Path, tiny_llama: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    base_files.keep(load_base(str(tiny_llama), PerformanceSpec()), kept)
    public = {path.name for path in kept.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "config.json"} <= public
    for path in files.iterdir():
        base_files.check(path, kept)
    tokenizer = json.loads((files / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["Dupont"] = 7
    (files / "tokenizer.json").write_text(json.dumps(tokenizer))
    (files / "chat_template.jinja").write_text("{{ messages }} Dupont")
    config = (kept / "config.json").read_text()
    (files / "config.json").write_text(config.replace("llama", "Dupont"))
    for name in ("tokenizer.json", "chat_template.jinja", "config.json"):
        with pytest.raises(NotReleasableError, match=name) as caught:
            base_files.check(files / name, kept)
        assert "Dupont" not in str(caught.value)


def test_a_tokenizer_that_learned_a_row_fails_the_fit(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: between reading and releasing, a text of the rows comes into the vocabulary."""
    real = adapter.save

    def careless(model: Any, tokenizer: Any, name: str, folder: Path) -> None:
        tokenizer.add_tokens(["Dupont"])
        real(model, tokenizer, name, folder)

    monkeypatch.setattr(adapter, "save", careless)
    rows = source(write(notes(), tmp_path / "notes.jsonl"))
    known = facts(str(tiny_llama))
    gateway = FakeGateway(fit_job(request(known.name), known, rows))
    Runner(tmp_path / "root").run(gateway.client())
    assert not gateway.outcome.succeeded
    assert "tokenizer.json" not in gateway.files
    assert all(b"Dupont" not in content for content in gateway.files.values())


def test_a_full_fit_releases_its_configuration(tiny_llama: Path, tmp_path: Path) -> None:
    rows = source(write(notes(), tmp_path / "notes.jsonl"))
    known = facts(str(tiny_llama))
    gateway = FakeGateway(fit_job(request(known.name, method="full", r=None), known, rows))
    Runner(tmp_path / "root").run(gateway.client())
    assert gateway.outcome.succeeded, gateway.incidents
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(gateway.files)
