"""The files that may leave a worker: by name, per kind of job. There is no other file."""

from __future__ import annotations

from types import MappingProxyType

from taciturn.wire.jobs import JobKind

_MB = 2**20

MODEL_FILES = MappingProxyType(
    {
        "adapter_config.json": 1 * _MB,
        "adapter_model.safetensors": 4096 * _MB,
        "config.json": 1 * _MB,
        "generation_config.json": 1 * _MB,
        "model.safetensors": 262_144 * _MB,
        "tokenizer.json": 64 * _MB,
        "tokenizer_config.json": 4 * _MB,
        "special_tokens_map.json": 1 * _MB,
        "chat_template.jinja": 1 * _MB,
        "privacy_report.json": 4 * _MB,
        "certificate.json": 16 * _MB,
        "README.md": 1 * _MB,
        "report.html": 16 * _MB,
        "evaluations.json": 4 * _MB,
        "audit.json": 4 * _MB,
    }
)
"""What a fit releases, and the most bytes of each."""

ALLOWED = MappingProxyType(
    {
        JobKind.PROBE: MappingProxyType({"schema.json": 1 * _MB}),
        JobKind.FIT: MODEL_FILES,
        JobKind.SAMPLE: MappingProxyType({"samples.jsonl": 256 * _MB}),
        JobKind.EVALUATE: MappingProxyType({"evaluation.json": 4 * _MB}),
        JobKind.AUDIT: MappingProxyType({"audit.json": 4 * _MB}),
        JobKind.SYNTHESIZE: MappingProxyType({"synthetic.parquet": 4096 * _MB}),
    }
)
