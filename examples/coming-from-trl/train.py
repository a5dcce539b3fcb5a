"""Fine-tune as with TRL's SFTTrainer, with a budget: `python train.py [MODEL] [STEPS]`."""

import json
import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from taciturn.embedded.notes import patient_notes
from taciturn.hf import DPTrainer, PrivacyArguments

try:
    from trl import SFTConfig
except ModuleNotFoundError:  # the arguments of transformers do as well
    from transformers import TrainingArguments as SFTConfig

name = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 100
notes = [json.loads(row["context"]) for row in patient_notes(n_patients=300)]

trainer = DPTrainer(
    model=AutoModelForCausalLM.from_pretrained(name),
    args=SFTConfig(
        output_dir="out",
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        max_steps=steps,
        learning_rate=1e-2,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    ),
    train_dataset=Dataset.from_list(notes),  # columns: text, patient_id, date
    processing_class=AutoTokenizer.from_pretrained(name),
    privacy=PrivacyArguments(target_epsilon=3, unit="patient_id", max_tokens=128),
)
trainer.train()
print(trainer.privacy.policy)
trainer.save_model("adapter")
