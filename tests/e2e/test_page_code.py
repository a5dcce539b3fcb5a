"""Python of the pages runs as it stands, one page after the other, with fits of one small step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

import taciturn
from support.code_blocks import blocks
from taciturn.embedded.notes import held_out_notes, patient_notes
from taciturn.embedded.pairs import held_out_pairs, preference_pairs

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1800)]

RUN = "run: tests/e2e/test_page_code.py"
PAGES = {
    "README.md": "DP (epsilon=",
    "docs/export.md": "",
    "docs/how-to/fit.md": "",
    "docs/how-to/from-opacus.md": "",
    "docs/how-to/preferences.md": "",
    "docs/how-to/trl.md": "",
    "docs/spending.md": "",
    "docs/trackers.md": "step 1: ",
    "docs/trainer.md": "DP (epsilon=",
}
"""Page -> what its code prints among other things."""
SMALL = {"steps": 1, "batch_size": 8, "max_tokens": 32, "method": "lora", "r": 1}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages name."""
    notes = [json.loads(row["context"]) for row in patient_notes(n_patients=60)]
    held_out = [json.loads(row["context"]) for row in held_out_notes(n_patients=20)]
    pairs, held_out_rows = preference_pairs(n_patients=60), held_out_pairs(n_patients=4)
    files = {
        "notes.jsonl": notes,
        "public.jsonl": held_out[:4],
        "cases.jsonl": [{"text": row["text"]} for row in held_out],
        "pairs.jsonl": pairs,
        "held-out.jsonl": held_out_rows,
    }
    for name, rows in files.items():
        lines = [json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    pd.DataFrame(notes).to_parquet(tmp_path / "notes.parquet")
    pd.DataFrame(held_out).to_parquet(tmp_path / "heldout.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits of one step, few samples, and a tiny model in the place of those of the hub."""
    import transformers

    few: dict[str, Any] = {"max_new_tokens": 8}
    fit, sample, synthesize = taciturn.LLM.fit, taciturn.LLM.sample, taciturn.LLM.synthesize
    monkeypatch.setattr(
        taciturn.LLM, "fit", lambda self, data, **fields: fit(self, data, **SMALL, **fields)
    )
    monkeypatch.setattr(
        taciturn.LLM,
        "sample",
        lambda self, prompts, **fields: sample(self, prompts, **few, **fields),
    )
    monkeypatch.setattr(
        taciturn.LLM, "synthesize", lambda self, n, **fields: synthesize(self, 2, **few, **fields)
    )
    for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
        load = kind.from_pretrained
        monkeypatch.setattr(
            kind,
            "from_pretrained",
            lambda name, *, load=load, **fields: load(
                tiny_llama if name == "HuggingFaceTB/SmolLM2-135M" else name, **fields
            ),
        )
    arguments = transformers.TrainingArguments

    def one_step(**fields: Any) -> transformers.TrainingArguments:
        fields |= {"max_steps": 1, "per_device_train_batch_size": 8}
        return arguments(**fields, report_to="none", use_cpu=True)

    monkeypatch.setattr(transformers, "TrainingArguments", one_step)
    # TRL is not installed; the page says that the arguments of transformers do as well.
    trl = ModuleType("trl")
    trl.__dict__["SFTConfig"] = one_step
    monkeypatch.setitem(sys.modules, "trl", trl)


def code(root: Path, page: str) -> list[str]:
    """Return the blocks of a page that this test has to run; of README the first one."""
    text = (root / page).read_text(encoding="utf-8")
    code = [block for block in blocks(text) if block.language == "python"]
    chosen = code[:1] if page == "README.md" else [b for b in code if b.comment == RUN]
    return [block.code for block in chosen]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("page", PAGES)
def test_code_of_a_page_runs(
    page: str, folder: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    if page == "docs/export.md":
        model = taciturn.LLM("taciturn/tiny-medical")
        model.fit("notes.jsonl", text_field="text", privacy_unit="patient_id", target_epsilon=3)
        model.save("out")
    if page == "docs/spending.md":
        names["model"] = taciturn.LLM("taciturn/tiny-medical")
    if page == "docs/trainer.md":
        from datasets import load_dataset

        names["rows"] = load_dataset("json", data_files="notes.jsonl", split="train")
    parts = code(root, page)
    assert parts
    for part in parts:
        exec(compile(part, page, "exec"), names)  # noqa: S102  # the page's own code
    assert PAGES[page] in capsys.readouterr().out
