"""One run's place in a ledger file, which adds up what all runs on the same data cost."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dp_accounting.dp_event import DpEvent

from taciturn.accounting.calibrate import default_delta
from taciturn.accounting.events import dpsgd_event
from taciturn.data.tokens.origin import canonical_source
from taciturn.data.unit import unit_name
from taciturn.engine.training.torchrun import is_first_process
from taciturn.errors import MissingDependencyError, SpecError
from taciturn.planning.plan import TrainingPlan
from taciturn.reports.privacy import LedgerTotal
from taciturn.spec import DataSpec, LedgerSpec

if TYPE_CHECKING:
    from taciturn.server.ledger import Together
    from taciturn.server.schema.ledger_file import LedgerFile


@dataclass(slots=True)
class Account:
    """One run in a ledger file: what its data are called there, and its own name."""

    book: LedgerFile
    namespace: str
    run: str = field(default_factory=lambda: secrets.token_hex(16))

    @classmethod
    def open(cls, spec: LedgerSpec, data: object, preparation: DataSpec) -> Account | None:
        """Open the ledger for a run about `data`, if there is one; charge nothing."""
        if spec.ledger is None or not is_first_process():
            return None
        try:
            from taciturn.server.schema.ledger_file import LedgerFile, namespace_of
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"ledger={spec.ledger!r} needs {error.name}; install taciturn[server]"
            ) from None
        source = spec.ledger_namespace or canonical_source(data)
        if source is None:
            raise SpecError(
                f"ledger={spec.ledger!r} adds up runs on the same data, and rows in memory have no "
                "name of their own; give ledger_namespace, the same one for all runs on them"
            )
        return cls(LedgerFile.open(spec.ledger), namespace_of(source, unit_name(preparation)))

    def pay(self, run: str, plan: TrainingPlan) -> LedgerTotal:
        """Charge all of a fit, whose name it keeps if it is resumed."""
        self.run = run
        if plan.privacy is None:
            return self.record_exception(default_delta(plan.n_units))
        event = dpsgd_event(
            sampling_probability=plan.sampling_probability,
            noise_multiplier=plan.privacy.noise_multiplier,
            steps=plan.steps,
        )
        return self.charge(event, plan.privacy.delta)

    def charge(self, event: DpEvent, delta: float) -> LedgerTotal:
        """Charge all of a run; only then may it begin."""
        return _total(self.book.charge(self.run, self.namespace, event, delta))

    def record_exception(self, delta: float) -> LedgerTotal:
        """Write down what has no guarantee, before it is there."""
        return _total(self.book.record_exception(self.run, self.namespace, delta))

    def settle(self) -> None:
        """The run is over, if anything was charged for it."""
        self.book.settle(self.run)


def _total(together: Together) -> LedgerTotal:
    return LedgerTotal(
        epsilon=together.epsilon,
        delta=together.delta,
        runs=together.jobs,
        without_guarantee=together.exceptions,
    )
