"""Files of Axolotl and LLaMA-Factory become valid job files; nothing is dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from taciturn.cli.translation.rules import TOOLS, Elsewhere, Needless, Refused
from taciturn.spec import JobSpec, parse

Taciturn = Callable[..., tuple[int, str, str]]

AXOLOTL = """
base_model: org/model
load_in_4bit: true
adapter: qlora
datasets:
  - path: notes.jsonl
    type: {kind}
sequence_len: 512
sample_packing: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
micro_batch_size: 4
gradient_accumulation_steps: 8
num_epochs: 3
learning_rate: 2e-4
bf16: true
fp16: false
gradient_checkpointing: true
output_dir: ./out
seed: 7
val_set_size: 0.1
shuffle_merged_datasets: true
deepspeed: zero2.json
wandb_project: mine
mine_alone: 1
"""
LLAMA_FACTORY = """
model_name_or_path: org/model
stage: sft
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
quantization_bit: 8
dataset: notes
dataset_dir: rows
cutoff_len: 512
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
num_train_epochs: 3.0
max_steps: 100
learning_rate: 1.0e-4
fp16: true
report_to: [tensorboard]
packing: true
template: llama3
mine_alone: 1
"""


@pytest.fixture
def translate(
    taciturn: Taciturn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Text of a file, and options -> what the command says; the job file is checked."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, *options: str) -> dict[str, Any]:
        (tmp_path / "a.yaml").write_text(text)
        (tmp_path / "job.yaml").unlink(missing_ok=True)
        code, out, err = taciturn("import-config", "a.yaml", "--json", *options)
        assert code == 0, err
        said: dict[str, Any] = json.loads(out)
        written = yaml.safe_load((tmp_path / "job.yaml").read_text())
        assert written == said["fields"]
        if not said["missing"]:
            parse(JobSpec, written)
        return said

    return run


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("alpaca", {"format": "alpaca"}),
        ("sharegpt", {"format": "sharegpt"}),
        ("chat_template", {"format": "openai", "messages_field": "messages"}),
        ("completion", {"text_field": "text"}),
    ],
)
def test_axolotl(translate: Any, kind: str, fields: dict[str, str]) -> None:
    said = translate(AXOLOTL.format(kind=kind), "--target-epsilon", "3", "--privacy-unit", "id")
    assert said["from"] == "Axolotl"
    assert said["missing"] == []
    assert said["fields"] == {
        "model": "org/model",
        "data": "notes.jsonl",
        **fields,
        "target_epsilon": 3.0,
        "privacy_unit": "id",
        "quantization": "nf4",
        "method": "lora",
        "max_tokens": 512,
        "r": 16,
        "alpha": 32.0,
        "target_modules": ["q_proj", "v_proj"],
        "batch_size": 32,
        "epochs": 3.0,
        "learning_rate": 2e-4,
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
        "output": "./out",
        "seed": 7,
        "report_to": ["wandb"],
    }
    refused = {"sample_packing", "lora_dropout", "val_set_size", "shuffle_merged_datasets"}
    assert set(said["not_honoured"]) == refused | {"deepspeed"}
    assert all(said["not_honoured"].values())
    assert said["unknown"] == ["mine_alone"]


def test_llama_factory_and_its_list_of_data(translate: Any, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    entry: dict[str, Any] = {"file_name": "notes.json", "columns": {"system": "rules"}}
    (tmp_path / "rows" / "dataset_info.json").write_text(json.dumps({"notes": entry}))
    said = translate(LLAMA_FACTORY, "--target-epsilon", "3")
    assert said["fields"]["data"] == "rows/notes.json"
    assert said["fields"]["format"] == "alpaca"
    assert said["fields"]["steps"] == 100
    assert "epochs" not in said["fields"]
    assert said["fields"]["quantization"] == "int8"
    assert {"packing", "fp16", "num_train_epochs", "dataset, columns.system"} <= set(
        said["not_honoured"]
    )
    entry |= {"formatting": "sharegpt", "columns": {"messages": "turns"}}
    entry["tags"] = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
    (tmp_path / "rows" / "dataset_info.json").write_text(json.dumps({"notes": entry}))
    said = translate(LLAMA_FACTORY, "--target-epsilon", "3")
    assert (said["fields"]["format"], said["fields"]["messages_field"]) == ("openai", "turns")


def test_every_key_is_accounted_for(translate: Any) -> None:
    for text in (AXOLOTL.format(kind="alpaca"), LLAMA_FACTORY):
        said = translate(text)
        shown = " ".join(
            str(said[part])
            for part in ("translated", "not_honoured", "nothing_to_do", "unknown", "missing")
        )
        for key in yaml.safe_load(text):
            assert key in shown, key


def test_what_is_missing_is_marked(translate: Any, tmp_path: Path) -> None:
    said = translate("base_model: org/model\ndatasets: [{path: org/hub, type: alpaca}]\n")
    assert said["missing"] == ["data", "target_epsilon"]
    text = (tmp_path / "job.yaml").read_text()
    assert "# data: ...  # GIVE THIS" in text
    assert "# target_epsilon: 3  # GIVE THIS" in text
    said = translate("base_model: org/model\ndatasets: []\n", "--data", "mine.jsonl")
    assert said["fields"]["data"] == "mine.jsonl"


@pytest.mark.parametrize(
    ("line", "key", "reason"),
    [
        ("sequence_len: long", "sequence_len", "no number"),
        ("sequence_len: 1", "sequence_len", "2"),
        ("adapter: ia3", "adapter", "lora, qlora"),
        ("micro_batch_size: many", "micro_batch_size", "no number"),
        ("learning_rate: -1", "learning_rate", "greater than"),
        ("lora_target_modules: 3", "lora_target_modules", "names of layers"),
        ("report_to: comet", "report_to", "tensorboard, mlflow, wandb"),
        ("adapter:\nlora_r: 8", "lora_r", "no adapter"),
        ("datasets: [{path: a.jsonl, type: oasst}]", "datasets[0].type", "alpaca, sharegpt"),
        ("datasets: 3", "datasets", "no list"),
    ],
)
def test_values_that_cannot_be_had(translate: Any, line: str, key: str, reason: str) -> None:
    said = translate(f"base_model: org/model\nval_set_size: 0\n{line}\n")
    assert reason in said["not_honoured"][key]


def test_a_file_of_neither_and_bad_files(
    taciturn: Taciturn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text, words in {
        "base_model: [1\nadapter: lora\n": ("line 2", "mend it there"),
        "model: a\ndata: b\n": ("neither Axolotl's", "fit -f FILE"),
        "- a\n": ("field: value",),
        "base_model: a\nadapter: lora\nbase_model: b\n": ("line 1 and at line 3", "keep one"),
    }.items():
        Path("a.yaml").write_text(text)
        code, _, err = taciturn("import-config", "a.yaml")
        assert code == 1
        assert all(word in err for word in words), err
        assert not Path("job.yaml").exists()
    Path("a.yaml").write_text("base_model: org/model\nadapter: lora\nwho: 1\n")
    code, out, _ = taciturn("import-config", "a.yaml")
    assert code == 0
    assert "base_model" in out
    assert "Unknown keys" in out
    assert "still to be given in job.yaml: target_epsilon" in out
    code, _, err = taciturn("import-config", "a.yaml")
    assert code == 1
    assert "there already" in err


def test_tables_name_the_common_keys_and_give_reasons() -> None:
    for tool in TOOLS:
        assert tool.signs <= tool.rules.keys()
        assert set(tool.batch) <= tool.rules.keys()
        for key, rule in tool.rules.items():
            if isinstance(rule, Needless | Refused):
                assert rule.reason, key
        own = {key for key, rule in tool.rules.items() if isinstance(rule, Elsewhere)}
        assert own - set(tool.batch) <= {"datasets", "dataset", "dataset_dir"}
