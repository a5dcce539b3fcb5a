"""Text that is declared public: all that is learned from it before a private fit, at no cost.

Nothing here reads a private row or charges a budget. What is learned is the side information of the
adapters, a learning rate for the private fit, and the weights that it begins with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from taciturn.data.declared import DeclaredText
from taciturn.data.schema_fields import choose_fields
from taciturn.data.source import open_rows
from taciturn.data.tokens.encoding import Tokenizer
from taciturn.data.tokens.origin import Origin
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.data.tokens.tokenize import prepare
from taciturn.engine.model.sharding import local
from taciturn.engine.model.subspace import text_rows
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import trainable_parameters
from taciturn.engine.privacy.ranks import Ranks
from taciturn.engine.training.batch import BatchLimits, microbatches
from taciturn.engine.training.loop import EpochOrder, batch_limits
from taciturn.engine.training.mechanism import planned_mechanism
from taciturn.engine.training.state import TrainingState
from taciturn.engine.training.step import Streams, ordinary_step, private_step
from taciturn.errors import DataError, MissingColumnError
from taciturn.planning.plan import RATE_FACTORS, TrainingPlan
from taciturn.reports.privacy import PublicData
from taciturn.spec import DataSpec, FitSpec

_FEWEST_RECORDS = 20
_MOST_JUDGED = 200  # held-out records
_TRIAL_STEPS, _TRIAL_UNITS = 40, 16
_JUDGEMENTS, _PATIENCE = 16, 3
# The ordinary default suits adapters whose A matrices are trained, too; fixed ones bear more.
_RATES, _TRIAL_SHARE = (1.0, 4.0, 0.25), 8
_SLOWER = (1, 4, 16)


@dataclass(frozen=True, slots=True)
class PublicText:
    """Public records as tokens, and what may be said about them.

    Attributes:
        fitted: what is learned from.
        held_out: a tenth of the records, at most 200, which judge what is learned.
        about: of all records.
    """

    fitted: TokenizedDataset
    held_out: TokenizedDataset
    about: PublicData

    @classmethod
    def prepare(
        cls, spec: FitSpec, tokenizer: Tokenizer, max_tokens: int, folder: Path, vocabulary: int
    ) -> None:
        """Tokenise `spec.public_data` into `folder`, each record by itself.

        Raises:
            DataError: it cannot be read, has no such column, or fewer than 20 records.
        """
        data = spec.public_data
        rows = open_rows(data.locate() if isinstance(data, DeclaredText) else data)
        try:
            kind = _data_spec(rows.schema, spec)
            choose_fields(rows.schema, kind)
        except MissingColumnError as error:
            raise MissingColumnError(
                f"public_data: {error}. Name its column of text with public_text_field"
            ) from None
        reader = pa.RecordBatchReader.from_batches(rows.schema, rows.batches)
        dataset = prepare(reader, kind, tokenizer, max_tokens, folder, 0, None, vocabulary)
        if dataset.n_units < _FEWEST_RECORDS:
            raise DataError(
                f"public_data has {dataset.n_units} records; at least {_FEWEST_RECORDS} are "
                "needed, a tenth of which judge what is learned from the others. Give more, or "
                "leave it out"
            )

    @classmethod
    def open(cls, folder: Path, seed: int, data: object = None) -> PublicText:
        """Public text that `prepare` has written of `data`; the seed decides which records are held
        out."""
        whole = TokenizedDataset.open(folder)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(whole.n_units, generator=generator).numpy().astype(np.int64)
        n_held_out = min(whole.n_units // 10, _MOST_JUDGED)
        about = PublicData(records=whole.n_records, sha256=Origin.read(folder).rows)
        if isinstance(data, DeclaredText):
            names = {"name": data.name, "declaration": data.declaration}
            about = about.model_copy(update=names)
        return cls(whole.only(order[n_held_out:]), whole.only(order[:n_held_out]), about)

    def rows(self) -> Tensor:
        """Token ids from which the adapters' side information is learned; [rows, tokens]."""
        units = range(self.fitted.n_units)
        return text_rows(record.input_ids for unit in units for record in self.fitted.records(unit))


def _data_spec(schema: pa.Schema, spec: FitSpec) -> DataSpec:
    """The columns of the private data, where the public have them, too; else what they offer."""
    if spec.public_text_field is not None:
        return DataSpec(text_field=spec.public_text_field)
    names = ("text_field", "question_field", "answer_field", "messages_field")
    columns = {name: getattr(spec, name) for name in names if getattr(spec, name) is not None}
    same = DataSpec(format=spec.format, **columns)
    try:
        choose_fields(schema, same)
    except MissingColumnError:
        return DataSpec()
    return same


@dataclass(frozen=True, slots=True)
class PublicStage:
    """Work that comes before a private fit of the trainable parameters of `loss`.

    Every process of a job calls it; what rank 0 has measured decides for all.
    """

    loss: nn.Module
    text: PublicText
    microbatch_tokens: int
    form: Form
    ranks: Ranks

    def rate_factor(self, plan: TrainingPlan) -> float:
        """The factor on the plan's learning rate that does best in SIMULATED private fits.

        A simulated fit draws a few public records a step, under the noise that the plan has on its
        mean gradient, and at most 40 steps; it is judged on held-out records, and thrown away. The
        weights are left as they were: those before the ordinary fit, after which public text would
        have nothing left to teach and every rate would only seem to do harm.
        """
        start = _weights(self.loss)
        losses: dict[float, float] = {}
        for factor in RATE_FACTORS:
            self._simulate(simulated(plan, factor, self.text.fitted.n_units))
            losses[factor] = self._judged(plan.max_tokens)
            _install(self.loss, start)
        return min(losses, key=losses.__getitem__)

    def fit(self, plan: TrainingPlan) -> None:
        """Fit to the public text in the ordinary way, and keep what held-out records like best.

        The rate is the plan's, four times or a quarter of it, whichever does best in an eighth of
        the steps. If nothing is better than the start, a slower fit is tried, and at last the
        start is kept.

        Args:
            plan: one without privacy, of the same parameters.
        """
        start, least = _weights(self.loss), self._judged(plan.max_tokens)
        short = plan.model_copy(update={"steps": math.ceil(plan.steps / _TRIAL_SHARE)})
        losses: dict[float, float] = {}
        for factor in _RATES:
            losses[factor], _ = self._descend(_at(short, factor), math.inf, judgements=1)
            _install(self.loss, start)
        fastest = min(losses, key=losses.__getitem__)
        for slower in _SLOWER:
            _, best = self._descend(_at(plan, fastest / slower), least, _JUDGEMENTS)
            if best is not None:
                _install(self.loss, best)
                return
            _install(self.loss, start)

    def _descend(
        self, plan: TrainingPlan, least: float, judgements: int
    ) -> tuple[float, dict[str, Tensor] | None]:
        """Loss of the best weights on the way of an ordinary fit, and these weights.

        Weights are None, and `least` is given back, if none is judged below it.
        """
        state, limits = self._begin(plan)
        order = EpochOrder(plan, self.text.fitted.n_units)
        every = math.ceil(plan.steps / judgements)
        best, judgements_waited = None, 0
        while state.step < plan.steps and judgements_waited < _PATIENCE:
            units = order.at(state.step)
            ordinary_step(self.loss, self.text.fitted, units, state, limits, self.ranks)
            if state.step % every and state.step < plan.steps:
                continue
            judged_loss = self._judged(plan.max_tokens)
            if judged_loss < least:
                least, best, judgements_waited = judged_loss, _weights(self.loss), 0
            else:
                judgements_waited += 1
        return least, best

    def _simulate(self, plan: TrainingPlan) -> None:
        state, limits = self._begin(plan)
        mechanism, streams = planned_mechanism(plan, tuple(state.parameters)), Streams.fresh()
        data = self.text.fitted
        for _ in range(plan.steps):
            private_step(self.loss, data, mechanism, state, streams, limits, self.form, self.ranks)
        state.finish()

    def _begin(self, plan: TrainingPlan) -> tuple[TrainingState, BatchLimits]:
        parameters = trainable_parameters(self.loss)
        limits = batch_limits(plan, self.loss, self.microbatch_tokens, self.ranks)
        private = plan.privacy is not None
        return TrainingState(parameters, plan.optimizer(), private=private), limits

    @torch.no_grad()
    def _judged(self, max_tokens: int) -> float:
        """Nats per token of held-out records, each counting the same; inf if it is no number."""
        data, total = self.text.held_out, 0.0
        device = next(self.loss.parameters()).device
        limits = BatchLimits(self.microbatch_tokens, _TRIAL_UNITS, max_tokens)
        for group in microbatches(data, np.arange(data.n_units), limits):
            total += sum(float(self.loss(part.to(device)).sum()) for part in group)
        mean_loss = self.ranks.numbers([total / data.n_units])[0][0]
        return mean_loss if math.isfinite(mean_loss) else math.inf


def simulated(plan: TrainingPlan, factor: float, n_units: int) -> TrainingPlan:
    """The plan of a trial on `n_units` public records: little work, and the noise of the plan.

    With few units in a step, their mean has the noise that the plan's batch has. Fewer steps have
    less noise each and a higher rate, so that signal and noise of all steps together are those of
    the plan: with AdamW in noise, a step's signal is rate / noise and its own noise the rate.
    """
    assert plan.privacy is not None
    units = min(_TRIAL_UNITS, plan.batch_size, n_units)
    steps = min(_TRIAL_STEPS, plan.steps)
    shorter = math.sqrt(plan.steps / steps)
    noise = plan.privacy.noise_multiplier * units / plan.batch_size / shorter
    return plan.model_copy(
        update={
            "privacy": plan.privacy.model_copy(update={"noise_multiplier": noise}),
            "n_units": n_units,
            "batch_size": units,
            "steps": steps,
            "warmup_steps": plan.warmup_steps * steps // plan.steps,
            "learning_rate": plan.learning_rate * factor * shorter,
        }
    )


def _at(plan: TrainingPlan, factor: float) -> TrainingPlan:
    return plan.model_copy(update={"learning_rate": plan.learning_rate * factor})


def _weights(loss: nn.Module) -> dict[str, Tensor]:
    """Copies of what is trained; of sharded parameters, this process's rows."""
    return {
        name: local(value.detach()).clone() for name, value in trainable_parameters(loss).items()
    }


@torch.no_grad()
def _install(loss: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, value in trainable_parameters(loss).items():
        local(value.detach()).copy_(values[name])
