"""Ways in which a report would promise what did not run, or tell how many are there: each is killed
by the check that is for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from taciturn.certificate import sign as signing
from taciturn.certificate.sign import statement_for
from taciturn.data.declared import DeclaredRows
from taciturn.data.tokens import origin
from taciturn.data.tokens.origin import Origin
from taciturn.data.tokens.store import TokenizedDataset, TokenWriter
from taciturn.data.tokens.tokenize import check_prepared, prepare
from taciturn.engine.evaluation import release as releasing
from taciturn.engine.evaluation.likelihood import UnitScores
from taciturn.engine.evaluation.release import release
from taciturn.engine.model.load import load_base
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.statistic import GaussianStatistic
from taciturn.engine.privacy.types import PrivateStatistics
from taciturn.engine.training.loop import Blocks, Run
from taciturn.engine.training.public import PublicStage
from taciturn.engine.training.run_record import RunRecord
from taciturn.errors import CheckpointError
from taciturn.llm import LLM
from taciturn.local import estimate, fit
from taciturn.local.estimate import public_facts
from taciturn.local.fit import Arranged, Observer
from taciturn.planning.plan import make_plan
from taciturn.reports.privacy import PrivacyReport
from taciturn.server.ledger import namespaces
from taciturn.server.schema.ledger_file import LedgerFile
from taciturn.spec import DataSpec, FitSpec

Patch = pytest.MonkeyPatch
SETTINGS: dict[str, Any] = {
    "text_field": "text",
    "target_epsilon": 8,
    "batch_size": 6,
    "steps": 2,
    "method": "lora",
    "r": 2,
    "checkpoint_every": 1,
    "max_tokens": 24,
}
DECLARED, THERE = 30, 6


class StoppedError(Exception):
    """In the middle of a run."""


def rows() -> pd.DataFrame:
    text = [f"patient {i} had a cough" for i in range(24)]
    return pd.DataFrame({"text": text, "id": [f"p{i // 2}" for i in range(24)]})


def begun(model: Path, folder: Path, llm: LLM | None = None, data: object = None) -> None:
    """A run of single records that is stopped with a checkpoint."""

    def at_the_second(progress: Any) -> None:
        if progress.step == 2:
            raise StoppedError

    given = rows() if data is None else data
    observer = Observer(on_progress=at_the_second)
    with pytest.raises(StoppedError):
        (llm or LLM(str(model))).fit(given, output=folder, observer=observer, **SETTINGS)


def resumed(model: Path, folder: Path, data: object = None, **fields: Any) -> PrivacyReport:
    given = rows() if data is None else data
    report = LLM(str(model)).fit(given, output=folder, resume=True, **{**SETTINGS, **fields})
    assert report.privacy is not None
    return report.privacy


def refused(model: Path, folder: Path, data: object = None, **fields: Any) -> None:
    try:
        resumed(model, folder, data, **fields)
    except CheckpointError:
        return
    raise AssertionError("a run went on as another one")


def another_unit(model: Path, folder: Path, patch: Patch) -> None:
    begun(model, folder / "out")
    refused(model, folder / "out", privacy_unit="id")


def other_rows(model: Path, folder: Path, patch: Patch) -> None:
    begun(model, folder / "out")
    refused(model, folder / "out", data=rows().assign(text="a cough"))


def other_rows_in_the_file(model: Path, folder: Path, patch: Patch) -> None:
    rows().to_csv(folder / "notes.csv", index=False)
    begun(model, folder / "out", data=str(folder / "notes.csv"))
    rows().iloc[:-2].to_csv(folder / "notes.csv", index=False)
    refused(model, folder / "out", data=str(folder / "notes.csv"))


def another_unit_of_the_file(model: Path, folder: Path, patch: Patch) -> None:
    """Whose rows need not be read again to be the same."""
    rows().to_csv(folder / "notes.csv", index=False)
    begun(model, folder / "out", data=str(folder / "notes.csv"))
    refused(model, folder / "out", data=str(folder / "notes.csv"), privacy_unit="id")


def another_tokenizer(model: Path, folder: Path, patch: Patch) -> None:
    """It gives the same ids for these rows."""
    tokenizer = load_base(str(model), FitSpec()).tokenizer
    prepare(rows(), DataSpec(), tokenizer, 24, folder / "data", 0)
    tokenizer.add_tokens(["hypertension"])
    try:
        check_prepared(rows(), DataSpec(), tokenizer, 24, folder / "data", 0)
    except CheckpointError:
        return
    raise AssertionError("a run went on with another tokenizer")


def spent_before(model: Path, folder: Path, patch: Patch) -> None:
    llm = LLM(str(model))
    llm.evaluate(rows(), text_field="text", target_epsilon=1, delta=1e-3)
    begun(model, folder / "out", llm)
    steps = resumed(model, folder / "out").private_steps
    assert [step.purpose for step in steps] == ["evaluate", "fit"]


def named_by_the_data(model: Path, folder: Path, patch: Patch) -> None:
    """Even if nobody had compared: the report is of what was prepared, certificate and card too."""
    begun(model, folder / "out")
    patch.setattr(fit, "check_prepared", lambda *_: None)
    report = resumed(model, folder / "out", privacy_unit="id")
    assert {report.privacy_unit, *(step.privacy_unit for step in report.private_steps)} == {
        "one record"
    }
    assert "unit=one record" in (folder / "out" / "README.md").read_text()


def declared_number(model: Path, folder: Path, patch: Patch) -> None:
    """How many units there are is private where their number was declared."""
    spec = FitSpec(**{**SETTINGS, "privacy_unit": "id"})
    base = load_base(str(model), spec)
    arranged = Arranged(
        make_plan(spec, public_facts(base, DECLARED)), Blocks(10, lambda first, steps: None)
    )
    data = DeclaredRows(rows().iloc[: 2 * THERE], DECLARED)
    report = fit.fit(base, data, spec, folder / "out", arranged=arranged).report
    assert {report.n_units, *(step.n_units for step in report.private_steps)} == {DECLARED}


def noised_number(model: Path, folder: Path, patch: Patch) -> None:
    """How many are there follows from the figures, with as much noise as is said."""
    sigma, found = 2.0, []
    scores = UnitScores(
        torch.full((500,), 5.0).double(), torch.full((500,), 10), torch.full((500,), 5)
    )
    for number in range(60):
        got = release(
            [scores],
            None,
            0,
            loss_bound=1.0,
            noise_multiplier=sigma,
            stream=SecureStream(number.to_bytes(32, "big")),
            declared_units=1000,
        ).scores[0]
        mean = 2 * got.token_accuracy - 1
        row_std = sigma * 1.5 / 1000  # of two figures that weigh 1, and the count, which weighs 0.5
        divisor = row_std * math.hypot(1, 2 * mean) / (2 * got.accuracy_std)
        found.append((1000 * divisor - 500) / (1000 * 2 * row_std))
    assert 0.4 < float(np.mean(np.square(found))) < 2.2


def charged_before(model: Path, folder: Path, patch: Patch) -> None:
    """What a ledger says when the first step is over, and after a crash in it."""
    url, seen = f"sqlite:///{folder}/ledger.db", []

    def look(_: object) -> None:
        seen.append(namespaces(LedgerFile.open(url).engine))
        raise StoppedError

    with pytest.raises(StoppedError):
        LLM(str(model)).fit(
            rows(),
            output=folder / "out",
            observer=Observer(on_progress=look),
            ledger=url,
            ledger_namespace="notes",
            **SETTINGS,
        )
    assert seen == [["notes [one record]"]]
    assert LedgerFile.open(url).total("notes [one record]").epsilon > 1


TIMED: dict[str, Any] = {**SETTINGS, "steps": None, "max_minutes": 0.01}


def _happened(patch: Patch, *seconds: float) -> list[str]:
    """What measures speed, each time as slow as said, and what reads rows, in their order."""
    found, left, prepare = list[str](), list(seconds), fit.prepare

    def measured(*_: object) -> float:
        found.append("measured")
        return left.pop(0)

    def read(*given: Any) -> Any:
        found.append("read")
        return prepare(*given)

    patch.setattr(estimate, "measured_seconds_per_unit", measured)
    patch.setattr(fit, "prepare", read)
    return found


def timed_before_rows(model: Path, folder: Path, patch: Patch) -> None:
    """A speed that is measured once rows are there may follow from them, and a plan from it."""
    happened = _happened(patch, 0.03)
    LLM(str(model)).fit(rows(), **TIMED)
    assert happened == ["measured", "read"]


def plan_of_the_begun_run(model: Path, folder: Path, patch: Patch) -> None:
    """What was paid for and half run is what is run to its end."""
    _happened(patch, 0.03, 0.001)
    llm = LLM(str(model))
    with pytest.raises(StoppedError):
        llm.fit(rows(), output=folder / "out", observer=Observer(on_progress=_at_two), **TIMED)
    try:
        report = LLM(str(model)).fit(rows(), output=folder / "out", resume=True, **TIMED).privacy
    except CheckpointError as error:
        raise AssertionError("a run could not go on as it was begun") from error
    assert report is not None
    assert report.steps == 3


def _at_two(progress: Any) -> None:
    if progress.step == 2:
        raise StoppedError


PUBLIC = [f"case {i}: a man with a fever" for i in range(40)]


def named_public_text(model: Path, folder: Path, patch: Patch) -> None:
    """What was learned from without noise is in report and certificate, of further fits too."""
    settings = {**SETTINGS, "learning_rate": 0.01, "steps": 1}
    LLM(str(model)).fit(rows(), output=folder / "out", public_data=PUBLIC, **settings)
    more = {**settings, "r": None}
    again = LLM(str(folder / "out")).fit(rows(), output=folder / "again", **more).privacy
    assert again is not None
    assert [text.records for text in again.public_data] == [40]
    statement = statement_for(folder / "again", audit=None, moment=datetime.now(UTC))
    assert [text.records for text in statement.predicate.public_data] == [40]


def another_public_text(model: Path, folder: Path, patch: Patch) -> None:
    begun_settings = {"public_data": PUBLIC, "learning_rate": 0.01}
    observer = Observer(on_progress=lambda progress: progress.step < 2 or stop(progress))
    with pytest.raises(StoppedError):
        LLM(str(model)).fit(
            rows(), output=folder / "out", observer=observer, **{**SETTINGS, **begun_settings}
        )
    other = {**begun_settings, "public_data": ["a sprain", *PUBLIC[1:]]}
    refused(model, folder / "out", **other)


def unread_before_it_is_paid(model: Path, folder: Path, patch: Patch) -> None:
    """Between preparation and charge no private record is looked at: what steers is public."""
    read: list[tuple[str, bool]] = []
    real_records, real_pay, paid = TokenizedDataset.records, fit._pay, [False]

    def records(self: TokenizedDataset, unit: int) -> Any:
        read.append((self.fingerprint, paid[0]))
        return real_records(self, unit)

    def pay(*given: Any) -> Any:
        paid[0] = True
        return real_pay(*given)

    patch.setattr(TokenizedDataset, "records", records)
    patch.setattr(fit, "_pay", pay)
    LLM(str(model)).fit(rows(), output=folder / "out", public_data=PUBLIC, **SETTINGS)
    private = TokenizedDataset.open(folder / "out" / "private" / "data").fingerprint
    assert {was_paid for name, was_paid in read if name == private} == {True}
    assert {was_paid for name, was_paid in read if name != private} == {False}


def stop(_: object) -> None:
    raise StoppedError


def public_text_unsaid(patch: Patch) -> None:
    patch.setattr(fit, "_all_public", lambda earlier, public: ())


def public_text_of_the_last_fit(patch: Patch) -> None:
    patch.setattr(
        fit, "_all_public", lambda earlier, public: () if public is None else (public.about,)
    )


def uncertified_public_text(patch: Patch) -> None:
    real = signing.Predicate
    patch.setattr(signing, "Predicate", lambda **fields: real(**{**fields, "public_data": ()}))


def any_public_text(patch: Patch) -> None:
    patch.setattr(RunRecord, "resumed_as", lambda self, asked: self)


def rate_by_private_rows(patch: Patch) -> None:
    """What is tried is judged by the loss of those that are protected."""
    real = fit._tuned

    def mutant(job: Any, begun: RunRecord, plan: Any, stage: Any) -> Any:
        private = TokenizedDataset.open(job.data)
        return real(job, begun, plan, replace(stage, text=replace(stage.text, held_out=private)))

    patch.setattr(fit, "_tuned", mutant)


def fitted_to_private_rows(patch: Patch) -> None:
    """In the ordinary way, without noise."""
    real = PublicStage.fit

    def mutant(self: PublicStage, plan: Any) -> None:
        folder = Path(str(seen[-1])) / "private" / "data"
        real(replace(self, text=replace(self.text, fitted=TokenizedDataset.open(folder))), plan)

    seen: list[Path] = []
    open_output = fit._open_output
    patch.setattr(
        fit,
        "_open_output",
        lambda output, resume: (seen.append(output), open_output(output, resume))[1],
    )
    patch.setattr(PublicStage, "fit", mutant)


def no_comparison(patch: Patch) -> None:
    patch.setattr(fit, "check_prepared", lambda *_: None)


def spec_ignored(patch: Patch) -> None:
    patch.setattr(Origin, "check", lambda self, asked: None)


def rows_ignored(patch: Patch) -> None:
    patch.setattr(TokenWriter, "content", lambda self: "")


def any_file_unchanged(patch: Patch) -> None:
    patch.setattr(origin, "_files", lambda data: (("a file",),))


def any_tokenizer(patch: Patch) -> None:
    patch.setattr(origin, "_tokenizer_digest", lambda tokenizer: "")


def history_of_the_call(patch: Patch) -> None:
    patch.setattr(RunRecord, "resumed_as", lambda self, asked: asked)


def unit_of_the_call(patch: Patch) -> None:
    real = fit.privacy_report

    def mutant(base: Any, data: Origin, plan: Any, loss: Any) -> PrivacyReport:
        asked = data.spec.model_copy(update={"privacy_unit": "id"})
        return real(base, data.model_copy(update={"spec": asked}), plan, loss)

    patch.setattr(fit, "privacy_report", mutant)


def number_of_those_there(patch: Patch) -> None:
    real = fit.privacy_report

    def mutant(base: Any, data: Any, plan: Any, loss: Any) -> PrivacyReport:
        return real(base, data, plan, loss).model_copy(update={"n_units": THERE})

    patch.setattr(fit, "privacy_report", mutant)


def number_without_noise(patch: Patch) -> None:
    """The last column is how many there are."""

    class Mutant(GaussianStatistic):
        def release(self, values_UK: torch.Tensor, stream: SecureStream) -> PrivateStatistics:
            private = super().release(values_UK, stream)
            there = len(values_UK) / self.n_units
            return PrivateStatistics((*private.mean_K[:-1], there), private.noise_std)

    patch.setattr(releasing, "GaussianStatistic", Mutant)


def charged_afterwards(patch: Patch) -> None:
    """Once the steps are done."""
    real = fit.train

    def mutant(run: Run, **more: Any) -> Any:
        state = real(replace(run, before_steps=lambda: None), **more)
        run.before_steps()
        return state

    patch.setattr(fit, "train", mutant)


def timed_once_rows_are_there(patch: Patch) -> None:
    waiting: list[Callable[[], Any]] = []
    real, plan = fit._speed, fit.make_plan
    patch.setattr(fit, "_speed", lambda *given: waiting.append(lambda: real(*given)))
    patch.setattr(fit, "make_plan", lambda spec, facts, _: plan(spec, facts, waiting[0]()))


def timed_anew(patch: Patch) -> None:
    """When a run is resumed, too."""
    real = fit._speed
    patch.setattr(fit, "_speed", lambda job, begun, loss, _: real(job, begun, loss, False))


Check = Callable[[Path, Path, Patch], None]
MUTANTS: list[tuple[Callable[[Patch], None], Check]] = [
    (no_comparison, another_unit),
    (no_comparison, other_rows),
    (spec_ignored, another_unit_of_the_file),
    (rows_ignored, other_rows),
    (any_file_unchanged, other_rows_in_the_file),
    (any_tokenizer, another_tokenizer),
    (history_of_the_call, spent_before),
    (unit_of_the_call, named_by_the_data),
    (number_of_those_there, declared_number),
    (number_without_noise, noised_number),
    (charged_afterwards, charged_before),
    (timed_once_rows_are_there, timed_before_rows),
    (timed_anew, plan_of_the_begun_run),
    (public_text_unsaid, named_public_text),
    (public_text_of_the_last_fit, named_public_text),
    (uncertified_public_text, named_public_text),
    (any_public_text, another_public_text),
    (rate_by_private_rows, unread_before_it_is_paid),
    (fitted_to_private_rows, unread_before_it_is_paid),
]
IDS = [f"{mutant.__name__}-{check.__name__}" for mutant, check in MUTANTS]


@pytest.mark.parametrize("check", dict.fromkeys(check for _, check in MUTANTS))
def test_the_promise_passes(
    check: Check, tiny_llama: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    check(tiny_llama, tmp_path, monkeypatch)


@pytest.mark.parametrize(("mutant", "check"), MUTANTS, ids=IDS)
def test_the_mutant_is_killed(
    mutant: Callable[[Patch], None],
    check: Check,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check(tiny_llama, tmp_path, monkeypatch)
