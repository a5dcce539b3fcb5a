"""DPTrainer fits what people give to a Trainer, by our engine, and shows public values alone."""

from __future__ import annotations

import importlib.util
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainingArguments,
)

from support.ranks import in_processes, results
from taciturn import LLM
from taciturn.errors import CallbackError, ModelError, RowError, SpecError
from taciturn.hf import DPTrainer, PrivacyArguments
from taciturn.hf.records import check_collator, records

PROMISE = PrivacyArguments(8, unit="id", method="lora", r=2, max_tokens=24)
TRL = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="trl is not installed; pip install trl"
)


def rows(n: int = 24) -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [{"text": f"patient {i} had a cough", "id": f"p{i // 2}"} for i in range(n)]
    )


def arguments(output: Path, **fields: Any) -> TrainingArguments:
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 3}
    small |= {"logging_steps": 1, "save_steps": 1, "learning_rate": 1e-3}
    fixed = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return TrainingArguments(**{"output_dir": str(output), **small, **fixed, **fields})


def trainer(model: Any, output: Path, **more: Any) -> DPTrainer:
    given: dict[str, Any] = {"train_dataset": rows(), "privacy": PROMISE, **more}
    args = given.pop("args", None) or arguments(output)
    return DPTrainer(str(model) if isinstance(model, Path) else model, args, **given)


@pytest.fixture(scope="module")
def trained(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> DPTrainer:
    """A model in memory, tokens, and the usual collator."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokens = rows().map(
        lambda row: tokenizer(row["text"], padding="max_length", max_length=24), batched=True
    )
    output = tmp_path_factory.mktemp("trainer") / "out"
    made = trainer(
        AutoModelForCausalLM.from_pretrained(tiny_llama),
        output,
        args=arguments(output, eval_strategy="steps", eval_steps=2, report_to=["csv"]),
        train_dataset=tokens,
        eval_dataset=["a cough"] * 3,
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        privacy=PrivacyArguments(
            8, unit="id", method="lora", r=2, max_tokens=24, eval_is_public=True
        ),
    )
    made.train()
    return made


def test_the_report_is_of_the_units_and_the_logical_batch(trained: DPTrainer) -> None:
    report = trained.privacy
    assert report is not None
    assert (report.privacy_unit, report.n_units) == ("id", 12)
    assert (report.expected_batch_size, report.steps) == (6, 3)
    assert report.policy == LLM(str(trained.args.output_dir)).policy


def test_the_log_has_public_values_alone(trained: DPTrainer) -> None:
    history = trained.state.log_history
    assert [entry["step"] for entry in history] == [1, 2, 2, 3]
    assert {name for entry in history for name in entry} == {
        *("learning_rate", "epsilon", "delta", "epoch", "step"),
        *("eval_loss", "eval_token_accuracy"),
    }
    report = trained.privacy
    assert report is not None
    assert history[-1]["epsilon"] == report.epsilon
    assert [entry["learning_rate"] for entry in history if "epsilon" in entry] == pytest.approx(
        [1e-3, 2e-3 / 3, 1e-3 / 3]
    ), "linear decay, as the arguments say"
    assert (Path(str(trained.args.output_dir)) / "tracking" / "progress.csv").is_file()


def test_it_saves_and_judges(trained: DPTrainer, tmp_path: Path) -> None:
    trained.save_model()
    trained.save_model(str(tmp_path / "copy"))
    assert not (tmp_path / "copy" / "private").exists()
    assert LLM(str(tmp_path / "copy")).privacy == trained.privacy
    figures = trained.evaluate()
    assert figures["eval_loss"] > 0
    tracked = (tmp_path / "copy" / "tracking" / "progress.csv").read_text(encoding="utf-8")
    assert f"evaluate/fitted/nats_per_token,0,{figures['eval_loss']}" in tracked
    by_name = trained.evaluate({"a": ["a cough"] * 3})
    assert by_name["eval_a_loss"] == pytest.approx(figures["eval_loss"])
    with pytest.raises(SpecError, match="predictions for rows"):
        trained.predict(["a"])
    with pytest.raises(SpecError, match="output_dir holds private/"):
        trained.push_to_hub()


def test_tokens_are_what_taciturn_makes_of_the_text(tiny_llama: Path, tmp_path: Path) -> None:
    """Padding is left out, labels of -100 are no targets."""
    from taciturn.data.tokens.origin import Origin
    from taciturn.data.tokens.tokenize import prepare
    from taciturn.spec import DataSpec

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        ids = [start, *tokenizer(row["text"], add_special_tokens=False)["input_ids"], end]
        padding = 24 - len(ids)
        labels = [-100, *ids[1:], *[-100] * padding]
        mask = [1] * len(ids) + [0] * padding
        return {"input_ids": ids + [0] * padding, "labels": labels, "attention_mask": mask}

    tokens = rows().map(encode)
    own = records(tokens, None, PROMISE, "text").data
    text = DataSpec(privacy_unit="id", text_field="text")
    prepare(rows(), text, tokenizer, 24, tmp_path / "text", 0)
    prepare(own, DataSpec(privacy_unit="id"), tokenizer, 24, tmp_path / "tokens", 0)
    assert Origin.read(tmp_path / "text").rows == Origin.read(tmp_path / "tokens").rows
    wrong = tokens.map(lambda row: {"labels": [5, *row["labels"][1:]]})
    own = records(wrong, None, PROMISE, "text").data
    with pytest.raises(RowError, match="neither their own input_ids nor -100"):
        prepare(own, DataSpec(), tokenizer, 24, tmp_path / "x", 0)


def test_a_charged_evaluation_is_added_to_the_promise(tiny_llama: Path, tmp_path: Path) -> None:
    charged = PrivacyArguments(8, method="lora", r=2, max_tokens=24, eval_epsilon=1)
    made = trainer(tiny_llama, tmp_path / "out", privacy=charged, eval_dataset=rows(20))
    made.train()
    before = made.privacy
    figures = made.evaluate()
    after = made.privacy
    assert before is not None
    assert after is not None
    assert (after.epsilon or 0) > (before.epsilon or 0) > 0
    assert [step.purpose for step in after.private_steps] == ["fit", "evaluate"]
    assert figures["eval_epsilon"] == 1
    assert math.isfinite(figures["eval_loss"])


def test_an_uncharged_evaluation_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="has to be paid for"):
        trainer(tiny_llama, tmp_path / "out", eval_dataset=rows()).evaluate()


def test_an_untrained_peft_model_keeps_its_shape(tiny_llama: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    adapted = get_peft_model(
        base, LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    made = trainer(adapted, tmp_path / "out", privacy=PrivacyArguments(8, max_tokens=24))
    made.train()
    config = made.model.peft_config["default"]
    assert (config.r, config.lora_alpha, set(config.target_modules)) == (3, 5, {"q_proj"})


def adapted(folder: Path, **fields: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **fields)
    )


def trained_adapter(folder: Path) -> Any:
    model = adapted(folder)
    with torch.no_grad():
        next(value for name, value in model.named_parameters() if "lora_B" in name).add_(1)
    return model


def changed(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (trained_adapter, "was trained already"),
        (changed, "the model in memory is not"),
        (lambda folder: adapted(folder, lora_dropout=0.1), "LoraConfig lora_dropout=0.1"),
        (lambda folder: adapted(folder, use_dora=True), "LoraConfig use_dora=True"),
        (lambda folder: torch.nn.Linear(2, 2), "model is Linear"),
        (lambda folder: None, "model is missing"),
    ],
)
def test_models_that_are_refused(make: Any, message: str, tiny_llama: Path, tmp_path: Path) -> None:
    privacy = PrivacyArguments(8)
    with pytest.raises((ModelError, SpecError), match=message):
        trainer(make(tiny_llama), tmp_path / "out", privacy=privacy)


@pytest.mark.parametrize(
    "name",
    [
        *("model_init", "compute_loss_func", "compute_metrics", "formatting_func"),
        *("preprocess_logits_for_metrics", "optimizer_cls_and_kwargs"),
    ],
)
def test_functions_of_private_values_are_refused(
    name: str, tiny_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=f"^{name} cannot be honoured"):
        trainer(tiny_llama, tmp_path / "out", **{name: print})


def test_custom_optimisers_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^optimizers cannot be honoured"):
        trainer(tiny_llama, tmp_path / "out", optimizers=(object(), None))


def test_overriding_the_step_is_refused() -> None:
    with pytest.raises(SpecError, match="overrides compute_loss"):

        class _Own(DPTrainer):
            def compute_loss(self) -> None:
                """Never called."""


def test_collators(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    assert not check_collator(DataCollatorForLanguageModeling(tokenizer, mlm=False))
    for collator, message in (
        (DataCollatorWithFlattening(), "DataCollatorWithFlattening is not understood"),
        (DataCollatorWithPadding(tokenizer), "DataCollatorWithPadding is not understood"),
        (lambda batch: batch, "is not understood"),
    ):
        with pytest.raises(SpecError, match=message):
            check_collator(collator)


def test_masked_words_are_refused(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.mask_token = tokenizer.eos_token
    with pytest.raises(SpecError, match="mlm=True"):
        check_collator(DataCollatorForLanguageModeling(tokenizer, mlm=True))


class Watcher(TrainerCallback):
    """Keeps what it is told."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[str] = []
        self.keywords: set[str] = set()
        self.stop_at = stop_at

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.calls.append(f"step {state.global_step} of {state.max_steps}")
        self.keywords |= more.keys()
        control.should_training_stop = state.global_step == self.stop_at

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.keywords |= more.keys()

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.calls.append("end")


def test_callbacks_get_no_model_and_a_stop_leaves_a_checkpoint(
    tiny_llama: Path, tmp_path: Path
) -> None:
    watcher, events = Watcher(stop_at=2), list[Any]()
    made = trainer(tiny_llama, tmp_path / "out", callbacks=[watcher, events.append])
    with pytest.raises(CallbackError, match=r"should_training_stop.*stopped after step 2 of 3"):
        made.train()
    assert watcher.calls == ["step 1 of 3", "step 2 of 3", "end"]
    assert watcher.keywords == {"logs"}
    assert len(events) > 3
    again = trainer(tiny_llama, tmp_path / "out")
    assert again.train(resume_from_checkpoint=True).global_step == 3
    with pytest.raises(SpecError, match="is not in output_dir"):
        again.train(resume_from_checkpoint="/elsewhere/checkpoint-2")


def test_early_stopping_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    for callback in (EarlyStoppingCallback, EarlyStoppingCallback()):
        with pytest.raises(SpecError, match="EarlyStoppingCallback"):
            trainer(tiny_llama, tmp_path / "out", callbacks=[callback])


@TRL
def test_trls_arguments_and_peft_config(tiny_llama: Path, tmp_path: Path) -> None:
    from trl import SFTConfig

    args = SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=6,
        max_length=20,
        dataset_text_field="note",
        use_cpu=True,
        report_to="none",
    )
    made = DPTrainer(
        str(tiny_llama),
        args,
        train_dataset=rows().rename_column("text", "note"),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        privacy=PrivacyArguments(8, unit="id"),
    )
    assert made.train().global_step == 2


def _train_in_process(model: str, output: str) -> tuple[float, int, str]:
    made = trainer(Path(model), Path(output))
    made.train()
    report = made.privacy
    assert report is not None
    weights = sum(
        float(value.double().sum())
        for name, value in made.model.named_parameters()
        if "lora_" in name
    )
    return weights, report.expected_batch_size, report.policy


@pytest.mark.thorough
def test_two_processes(tiny_llama: Path, tmp_path: Path) -> None:
    first, second = results(
        in_processes(2, _train_in_process, str(tiny_llama), str(tmp_path / "out"))
    )
    assert first == second
    assert first[1] == 12, "2 x 3 x 2 processes"


_SCRIPT = """
import sys
import datasets
from transformers import TrainingArguments
from taciturn.hf import DPTrainer, PrivacyArguments

rows = datasets.Dataset.from_list([{"text": f"patient {i} had a cough"} for i in range(24)])
args = TrainingArguments(sys.argv[2], per_device_train_batch_size=3, max_steps=2, use_cpu=True,
                         report_to="none", disable_tqdm=True)
privacy = PrivacyArguments(8, method="lora", r=2, max_tokens=24)
made = DPTrainer(sys.argv[1], args, train_dataset=rows, privacy=privacy)
made.train()
if made.is_world_process_zero():
    print("batch", made.privacy.expected_batch_size)
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
        # As for two GPUs, which is how it starts several processes; the arguments say use_cpu.
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_launchers(launcher: list[str], tiny_llama: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT, encoding="utf-8")
    if launcher[0].startswith("accelerate"):
        pytest.importorskip("accelerate")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            launcher = [*launcher, f"--main_process_port={listener.getsockname()[1]}"]
    result = subprocess.run(
        [sys.executable, "-m", *launcher, str(script), str(tiny_llama), str(tmp_path / "out")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=850,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "batch 6" in result.stdout
