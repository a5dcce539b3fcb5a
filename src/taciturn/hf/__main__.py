"""Print the table of all fields of TrainingArguments: python -m taciturn.hf."""

from __future__ import annotations

from taciturn.hf.fields import table

if __name__ == "__main__":
    print(table())
