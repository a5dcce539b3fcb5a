"""A Trainer for people who have TrainingArguments, running the private engine.

>>> from taciturn.hf import DPTrainer, PrivacyArguments
"""

from __future__ import annotations

from taciturn.hf.privacy import PrivacyArguments as PrivacyArguments
from taciturn.hf.trainer import DPTrainer as DPTrainer

__all__ = ["DPTrainer", "PrivacyArguments"]
