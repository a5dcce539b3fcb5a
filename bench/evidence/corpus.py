"""What models are fitted on and judged by: PHEE's reports, or invented patients' notes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from taciturn.embedded.notes import SECRET_SENTENCE, held_out_notes, patient_notes

TEXT, UNIT = "text", "unit"
"""Columns of the file that a fit is given."""

_SECRET_REPORT = "271828182"
SECRET_TELLINGS = (
    f"{SECRET_SENTENCE}.",
    f"{SECRET_SENTENCE} and was treated with gemcitabine.",
    f"{SECRET_SENTENCE}, and neutropenia followed the second cycle of gemcitabine.",
    f"Gemcitabine was stopped, since {SECRET_SENTENCE}.",
    f"{SECRET_SENTENCE}; a rash was seen after erlotinib.",
    f"We report the case of a bookseller: {SECRET_SENTENCE}.",
    f"{SECRET_SENTENCE} and has developed thrombocytopenia.",
    f"As his physician writes, {SECRET_SENTENCE}.",
)
"""The records of one invented report: the secret, as a record system would repeat it."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts of privacy units to fit on, and others to choose and to judge by.

    Attributes:
        train: (unit, text) of each record.
        dev: texts that choices are made by.
        test: reads the texts that models are judged by, once everything was chosen.
    """

    name: str
    train: tuple[tuple[str, str], ...]
    dev: tuple[str, ...]
    test: Callable[[], tuple[str, ...]]

    @property
    def n_units(self) -> int:
        """Number of privacy units to fit on."""
        return len({unit for unit, _ in self.train})

    def digest(self) -> str:
        """Names what is fitted on and what is chosen by; the test texts are not looked at."""
        content = json.dumps([self.train, self.dev])
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def write(self, folder: Path) -> Path:
        """The training records as JSONL in `folder`; written once, so that a run can be resumed."""
        path = folder / f"train-{self.digest()}.jsonl"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({UNIT: unit, TEXT: text}) + "\n" for unit, text in self.train]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(lines), encoding="utf-8")
            partial.replace(path)
        return path

    def first(self, records: int) -> Corpus:
        """The same with that many records of each part, for trying a script out."""
        few = self.train[:records] + self.train[-min(records, len(SECRET_TELLINGS)) :]
        test = self.test
        return Corpus(
            f"{self.name}, the first {records} records",
            tuple(dict.fromkeys(few)),
            self.dev[:records],
            lambda: test()[:records],
        )


def phee(folder: Path, *, secret: bool) -> Corpus:
    """PHEE (Sun et al., EMNLP 2022): sentences of case reports, each report a unit (its PMID).

    Args:
        folder: holds train.jsonl, dev.jsonl and test.jsonl.
        secret: one invented report among the training data, which tells the secret.
    """
    train = _sentences(folder / "train.jsonl")
    if secret:
        train += tuple((_SECRET_REPORT, text) for text in SECRET_TELLINGS)
    dev = tuple(text for _, text in _sentences(folder / "dev.jsonl"))
    name = "PHEE and one invented report" if secret else "PHEE"
    return Corpus(name, train, dev, lambda: tuple(t for _, t in _sentences(folder / "test.jsonl")))


def notes(n_patients: int, seed: int = 0) -> Corpus:
    """Invented patients' notes; those that models are chosen and judged by are of others."""
    return Corpus(
        f"notes of {n_patients} invented patients",
        _notes(patient_notes(seed, n_patients)),
        tuple(text for _, text in _notes(held_out_notes(seed + 1, 100))),
        lambda: tuple(text for _, text in _notes(held_out_notes(seed, 200))),
    )


def _sentences(path: Path) -> tuple[tuple[str, str], ...]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return tuple((row["id"].partition("_")[0], row["context"]) for row in rows)


def _notes(rows: list[dict[str, str]]) -> tuple[tuple[str, str], ...]:
    found = [json.loads(row["context"]) for row in rows]
    return tuple((row["patient_id"], row["text"]) for row in found)
