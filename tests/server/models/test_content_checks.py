"""A file leaves only if it is what its name says, and nothing besides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support import released_files
from taciturn.embedded import TINY_MEDICAL, model_path
from taciturn.server.models.content_checks import FileRefusedError, check
from taciturn.wire.artifacts import ALLOWED
from taciturn.wire.jobs import JobKind

SECRET = "François Dupont"
_ASKED: dict[str, Any] = {"prompts": ["Once"], "n": 2, "model": "model_1"}
_TENSOR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def _check(tmp_path: Path, kind: JobKind, name: str, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    check(kind, name, path, _ASKED, vocabulary=6144)


def _good() -> dict[tuple[JobKind, str], bytes]:
    fits = {(JobKind.FIT, name): data for name, data in released_files.fit_files().items()}
    return fits | {
        (JobKind.FIT, "model.safetensors"): released_files.safetensors({"lm_head.weight": _TENSOR}),
        (JobKind.FIT, "config.json"): b'{"model_type": "llama", "rope": {"theta": 1e4}}',
        (JobKind.FIT, "evaluations.json"): b'{"evaluations": [], "downstream": []}',
        (JobKind.FIT, "chat_template.jinja"): b"{{ messages }}",
        (JobKind.PROBE, "schema.json"): b'{"columns": [{"name": "id", "type": "string"}]}',
        (JobKind.SAMPLE, "samples.jsonl"): released_files.samples(
            ("Once", "upon"), ("Once", "more")
        ),
        (JobKind.EVALUATE, "evaluation.json"): released_files.evaluation(),
        (JobKind.SYNTHESIZE, "synthetic.parquet"): released_files.parquet({"text": ["a", "b"]}),
    }


@pytest.mark.parametrize(("kind", "name"), list(_good()))
def test_what_jobs_release_is_taken(tmp_path: Path, kind: JobKind, name: str) -> None:
    _check(tmp_path, kind, name, _good()[kind, name])


@pytest.mark.parametrize("kind", list(JobKind))
def test_no_file_is_taken_unread(tmp_path: Path, kind: JobKind) -> None:
    """Each allowed name has its check: bytes that are nothing are refused under all of them."""
    for name in ALLOWED[kind]:
        with pytest.raises(FileRefusedError):
            _check(tmp_path, kind, name, b"\xff" + SECRET.encode("utf-16"))
    with pytest.raises(FileRefusedError, match="name"):
        _check(tmp_path, kind, "optimizer.pt", b"x")


def _tokenizer(**changes: Any) -> bytes:
    """A small one, of another model than the embedded one."""
    pieces = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"], "a b"]}
    return json.dumps({"version": "1.0", "model": pieces, **changes}).encode()


_BAD: list[tuple[str, JobKind, str, bytes | str]] = [
    ("field", JobKind.FIT, "privacy_report.json", '{"note": "François Dupont"}'.encode()),
    (
        "another field",
        JobKind.FIT,
        "privacy_report.json",
        json.dumps({**released_files.report().model_dump(), "final_loss": 1.2}).encode(),
    ),
    (
        "twice",
        JobKind.PROBE,
        "schema.json",
        b'{"columns": [{"name": "id", "name": "a", "type": "string"}]}',
    ),
    (
        "statistics",
        JobKind.PROBE,
        "schema.json",
        b'{"columns": [{"name": "id", "type": "string", "n": 9}]}',
    ),
    ("long text", JobKind.FIT, "adapter_config.json", json.dumps({"r": "x" * 500}).encode()),
    ("lines", JobKind.FIT, "config.json", b'{"a": "one\\ntwo"}'),
    ("field name", JobKind.FIT, "config.json", json.dumps({SECRET: 1}).encode()),
    ("depth", JobKind.FIT, "config.json", b'{"a":' * 9 + b"1" + b"}" * 9),
    ("deep", JobKind.FIT, "config.json", b"[" * 100_000),
    ("sentence", JobKind.FIT, "config.json", b'{"a": "Once upon a time"}'),
    ("a list", JobKind.FIT, "tokenizer.json", b"[]"),
    *(
        (name, JobKind.FIT, "tokenizer.json", _tokenizer(**changes))
        for name, changes in {
            "a field": {"note": SECRET},
            "a field of the model": {"model": {"type": "BPE", "vocab": {}, "note": SECRET}},
            "a long piece": {"model": {"vocab": {SECRET * 30: 0}}},
            "a piece without a number": {"model": {"vocab": {"a": SECRET}}},
            "a merge": {"model": {"vocab": {"a": 0, "b": 1}, "merges": [["a", SECRET]]}},
            "a merge of many": {"model": {"vocab": {"a": 0}, "merges": ["a a a"]}},
            "an added one": {"added_tokens": [{"id": 1, "content": "a", "note": SECRET}]},
            "a rule": {"normalizer": {"type": "Replace", "content": SECRET * 50}},
            "a table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": SECRET}},
            "padding": {"padding": {"rows": 7}},
            "too many": {"model": {"vocab": {str(n): n for n in range(11_000)}}},
        }.items()
    ),
    ("template", JobKind.FIT, "chat_template.jinja", SECRET.encode()),
    (
        "template within",
        JobKind.FIT,
        "tokenizer_config.json",
        json.dumps({"chat_template": SECRET}),
    ),
    ("long token", JobKind.FIT, "special_tokens_map.json", json.dumps({"eos_token": SECRET * 30})),
    ("short", JobKind.FIT, "adapter_model.safetensors", b"\x01"),
    ("long header", JobKind.FIT, "adapter_model.safetensors", b"\xff" * 100),
    (
        "metadata",
        JobKind.FIT,
        "adapter_model.safetensors",
        released_files.safetensors(metadata={"format": "pt", "loss": "0.1"}),
    ),
    ("hidden tail", JobKind.FIT, "adapter_model.safetensors", released_files.safetensors(body=40)),
    ("cut", JobKind.FIT, "adapter_model.safetensors", released_files.safetensors(body=8)),
    ("nothing", JobKind.FIT, "adapter_model.safetensors", released_files.safetensors({}, body=0)),
    (
        "gap",
        JobKind.FIT,
        "model.safetensors",
        released_files.safetensors({"w": {**_TENSOR, "data_offsets": [16, 32]}}, body=32),
    ),
    (
        "shape",
        JobKind.FIT,
        "model.safetensors",
        released_files.safetensors({"w": {**_TENSOR, "shape": [2, 3]}}),
    ),
    (
        "negative",
        JobKind.FIT,
        "model.safetensors",
        released_files.safetensors({"w": {**_TENSOR, "shape": [-2, -2]}}),
    ),
    (
        "name of a tensor",
        JobKind.FIT,
        "model.safetensors",
        released_files.safetensors({SECRET: _TENSOR}),
    ),
    (
        "not an adapter",
        JobKind.FIT,
        "adapter_model.safetensors",
        released_files.safetensors({"optimizer.state": _TENSOR}),
    ),
    (
        "dtype",
        JobKind.FIT,
        "model.safetensors",
        released_files.safetensors({"w": {**_TENSOR, "dtype": SECRET}}),
    ),
    ("too few", JobKind.SAMPLE, "samples.jsonl", released_files.samples(("Once", "upon"))),
    ("too many", JobKind.SAMPLE, "samples.jsonl", released_files.samples(*[("Once", "a")] * 3)),
    ("prompt", JobKind.SAMPLE, "samples.jsonl", released_files.samples(*[("A row", "a")] * 2)),
    ("rows", JobKind.SYNTHESIZE, "synthetic.parquet", released_files.parquet({"text": ["a"] * 3})),
    (
        "columns",
        JobKind.SYNTHESIZE,
        "synthetic.parquet",
        released_files.parquet({"text": ["a"], "patient_id": ["7"]}),
    ),
    ("types", JobKind.SYNTHESIZE, "synthetic.parquet", released_files.parquet({"text": [1]})),
    (
        "notes",
        JobKind.SYNTHESIZE,
        "synthetic.parquet",
        released_files.parquet({"text": ["a"]}, {"taciturn": "{}", "log": SECRET}),
    ),
    ("certificate", JobKind.FIT, "certificate.json", b'{"payload": ""}'),
]


@pytest.mark.parametrize(
    ("kind", "name", "data"), [bad[1:] for bad in _BAD], ids=[bad[0] for bad in _BAD]
)
def test_anything_else_is_refused_and_not_quoted(
    tmp_path: Path, kind: JobKind, name: str, data: bytes | str
) -> None:
    with pytest.raises(FileRefusedError) as refused:
        _check(tmp_path, kind, name, data.encode() if isinstance(data, str) else data)
    assert SECRET not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_a_tokenizer_of_another_kind_is_taken(tmp_path: Path) -> None:
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "ALQCAACEAAAAAACAAQAAgMz8"}
    cut = {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
    for changes in (
        {"truncation": cut, "normalizer": {"type": "Sequence", "normalizers": [charsmap]}},
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -2.5]]}},
        {"model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "##a": 1}}},
    ):
        _check(tmp_path, JobKind.FIT, "tokenizer.json", _tokenizer(**changes))


def test_the_embedded_models_tokenizer_is_its_own(tmp_path: Path) -> None:
    path, asked = tmp_path / "file", {"model": TINY_MEDICAL}
    own = json.loads((model_path() / "tokenizer.json").read_text())
    path.write_text(json.dumps({**own, "padding": {"strategy": "BatchLongest", "pad_id": 0}}))
    check(JobKind.FIT, "tokenizer.json", path, asked)
    own["model"]["vocab"]["Dupont"] = own["model"]["vocab"].pop("Ġpatient")
    path.write_text(json.dumps(own))
    with pytest.raises(FileRefusedError):
        check(JobKind.FIT, "tokenizer.json", path, asked)
