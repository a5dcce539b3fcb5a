"""Files such as workers release, small and made up."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import dpsgd_event, event_to_dict
from taciturn.embedded import model_path
from taciturn.planning.plan import AdapterPlan, PrivacyPlan, TrainingPlan
from taciturn.reports.figures import Figure, ModelScore, ReleasedEvaluation
from taciturn.reports.privacy import PrivacyReport, PrivateStep

ADAPTER_TENSOR = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
EVENT = event_to_dict(dpsgd_event(sampling_probability=0.1, noise_multiplier=1.0, steps=5))


def plan() -> TrainingPlan:
    """Return the plan of a fit."""
    return TrainingPlan(
        adapter=AdapterPlan(method="lora", r=4, alpha=8),
        privacy=PrivacyPlan(epsilon=3.0, delta=1e-6, noise_multiplier=1.0, l2_clip_norm=0.1),
        n_units=100,
        batch_size=10,
        steps=5,
        learning_rate=1e-3,
        warmup_steps=0,
        decay=False,
        beta1=0.9,
        beta2=0.99,
        weight_decay=0.0,
        average_decay=0.0,
        max_tokens=64,
        max_records_per_unit=1,
    )


def report(**changes: Any) -> PrivacyReport:
    """Return the report of a fit."""
    fields: dict[str, Any] = {
        "guarantee": "differential privacy",
        "epsilon": 3.0,
        "delta": 1e-6,
        "privacy_unit": "id",
        "max_records_per_unit": 1,
        "n_units": 100,
        "mechanism": "DP-SGD",
        "noise_multiplier": 1.0,
        "sampling_probability": 0.1,
        "steps": 5,
        "l2_clip_norm": 0.1,
        "expected_batch_size": 10,
        "dp_event": EVENT,
        "accountant": "taciturn",
        "base_model": "taciturn/tiny-medical",
        "trainable_parameters": 8,
        "taciturn_version": "0.1.0",
    }
    return PrivacyReport(**{**fields, **changes})


def private_report() -> PrivacyReport:
    """Return the report of a small private fit."""
    event = dpsgd_event(sampling_probability=0.05, noise_multiplier=1.1, steps=20)
    step = PrivateStep(
        purpose="fit",
        dp_event=event_to_dict(event),
        privacy_unit="patient",
        max_records_per_unit=8,
        n_units=200,
        dataset_commitment="ab" * 32,
    )
    return PrivacyReport(
        guarantee="differential privacy",
        epsilon=epsilon(event, 1e-4),
        delta=1e-4,
        privacy_unit="patient",
        max_records_per_unit=8,
        n_units=200,
        mechanism="DP-SGD",
        steps=20,
        expected_batch_size=10,
        dp_event=event_to_dict(event),
        private_steps=(step,),
        accountant="test",
        base_model="some/base",
        base_model_sha256={"model.safetensors": "cd" * 32},
        libraries={"torch": "2"},
        trainable_parameters=3,
        taciturn_version="0.1.0",
    )


def safetensors(
    tensors: dict[str, dict[str, Any]] | None = None, *, metadata: Any = None, body: int = 16
) -> bytes:
    """A file of safetensors; by default one small adapter."""
    default = {ADAPTER_TENSOR: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    text = json.dumps({**header, **(default if tensors is None else tensors)}).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * body


def fit_files() -> dict[str, bytes]:
    """Return all files that a fit has to release."""
    return {
        "adapter_config.json": json.dumps({"peft_type": "LORA", "r": 4}).encode(),
        "adapter_model.safetensors": safetensors(),
        "privacy_report.json": report().model_dump_json(indent=2).encode(),
        "tokenizer_config.json": b"{}",
        "tokenizer.json": (model_path() / "tokenizer.json").read_bytes(),
    }


def samples(*lines: tuple[str, str]) -> bytes:
    """Lines of prompt and text."""
    rows = [
        {"prompt": prompt, "text": text, "prompt_tokens": 3, "tokens": len(text.split())}
        for prompt, text in lines
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def evaluation() -> bytes:
    """Return the figures of an evaluation."""
    score = ModelScore(nats_per_token=Figure(value=2.0), token_accuracy=Figure(value=0.5))
    evaluation = ReleasedEvaluation(
        basis="public", n_units=3, base=score, fitted=score, preferred=0.75
    )
    return evaluation.model_dump_json().encode()


def parquet(columns: dict[str, list[Any]], metadata: dict[str, str] | None = None) -> bytes:
    """A table."""
    table = pa.table(columns).replace_schema_metadata(metadata or {"taciturn": "{}"})
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()
