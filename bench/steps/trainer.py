"""What most people run: the Hugging Face Trainer, with PEFT's adapter in the model or without."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from steps.variants import LEARNING_RATE, Gauge, Task
from steps.workload import Batch
from taciturn.embedded import model_path


class TrainerVariant:
    """`Trainer.train` on one block of batches after another; nothing is logged or saved.

    Its loop, its defaults (fused AdamW, gradients clipped to norm 1, batches padded to their
    longest record, attention mask), its loss: the mean over the batch's tokens, which is the mean
    over records where they are of one length. Each call first makes one step that is not measured,
    so that what `train` sets up stays outside of the gauge.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.model = model
        self._gate = _Gate()
        logging.set_verbosity_error()
        with tempfile.TemporaryDirectory() as folder:
            self._trainer = Trainer(
                model=model,
                args=_arguments(folder, task, on_cpu=next(model.parameters()).device.type == "cpu"),
                data_collator=_collator(),
                train_dataset=[],
                callbacks=[self._gate],
            )
        # It prints its results otherwise.
        self._trainer.remove_callback(PrinterCallback)

    def run(self, batches: Sequence[Batch], gauge: Gauge) -> None:
        """See Variant."""
        rows = [
            {"input_ids": record.tolist()}
            for batch in (batches[0], *batches)
            for record in batch.records
        ]
        self._trainer.train_dataset = rows
        with ExitStack() as stack:
            self._gate.arm(gauge, stack, last_step=1 + len(batches))
            self._trainer.train()


class _Gate(TrainerCallback):
    """Enters the gauge after the first step and leaves it after the last one."""

    def arm(self, gauge: Gauge, stack: ExitStack, last_step: int) -> None:
        self._gauge, self._stack, self._last = gauge, stack, last_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer after its optimiser's step."""
        if state.global_step == self._last:
            self._stack.close()
        elif state.global_step == 1:
            self._stack.enter_context(self._gauge)


def _arguments(folder: str, task: Task, *, on_cpu: bool) -> TrainingArguments:
    sequences = task.microbatch or task.workload.sequences
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=sequences,
        gradient_accumulation_steps=max(1, task.workload.sequences // sequences),
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
    )


def _collator() -> DataCollatorForLanguageModeling:
    return DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(model_path()), mlm=False)
