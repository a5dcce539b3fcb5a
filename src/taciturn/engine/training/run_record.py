"""Record of what a run was begun with besides its data and its plan: kept in its private folder.

A resumed run goes on from here: with the same base model, from the same fitted model, and with all
that had been spent before it, whatever the process that resumes it knows of.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from taciturn.engine.training.checkpoint import full_disk_is_clear
from taciturn.errors import CheckpointError
from taciturn.reports.privacy import PrivacyReport, PrivateStep, PublicData

_BEGUN = "begun.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


class RunRecord(BaseModel):
    """A run as it was begun.

    Attributes:
        run: its name in a ledger; random.
        base_model: the public model that it all began with.
        base_model_sha256: of its files, where they were found.
        earlier: names the fitted model that is fitted further.
        spent: private steps before this run, which its report composes with it.
        seconds_per_unit: what max_minutes was reckoned with, so that a resumed run keeps its plan;
            None without it.
        public_data: what it learned from before any private row.
        rate_factor: on the default learning rate, as found on that; None until it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    base_model: str
    base_model_sha256: dict[str, str]
    earlier: str | None
    spent: tuple[PrivateStep, ...]
    seconds_per_unit: float | None = None
    public_data: PublicData | None = None
    rate_factor: float | None = None

    @classmethod
    def read(cls, private: Path) -> RunRecord:
        """Record of the run in `private`; raises CheckpointError if it is absent or damaged."""
        try:
            return cls.model_validate_json((private / _BEGUN).read_bytes())
        except (OSError, ValidationError):
            raise CheckpointError(
                f"{private / _BEGUN}, which says what the run was begun with, is absent, damaged "
                "or of another version; begin anew in another output folder"
            ) from None

    def write(self, private: Path) -> None:
        """Keep it in the run's private folder."""
        with full_disk_is_clear(private):
            (private / _BEGUN).write_text(self.model_dump_json(), encoding="utf-8")

    def resumed_as(self, request: RunRecord) -> RunRecord:
        """This run, which `request` resumes: with what was spent before either of them.

        Raises:
            CheckpointError: `request` is of another base model or other public text, or goes on
                from another fitted model.
        """
        if self.earlier != request.earlier:
            raise CheckpointError(
                "the run was begun from another model than this one: it went on from another fit, "
                "or from none; resume it with the model that it was begun with, or begin anew in "
                "another output folder"
            )
        if not self._has_base_of(request):
            raise CheckpointError(
                f"the run was begun with the base model {self.base_model}, and "
                f"{request.base_model} is not the same; give that one to resume it, or begin "
                "anew in another output folder"
            )
        if self.public_data != request.public_data:
            raise CheckpointError(
                f"the run was begun with {_public(self)}, this call has {_public(request)}; give "
                "the same public_data to resume it, or begin anew in another output folder"
            )
        own = [step for step in request.spent if step not in self.spent]
        return self.model_copy(update={"spent": (*self.spent, *own)})

    def _has_base_of(self, other: RunRecord) -> bool:
        """A base is its files, wherever they are; its name, where they were not found.

        Two machines need not have the same files of it, but the same weights.
        """
        own, other_digests = self.base_model_sha256, other.base_model_sha256
        if not own or not other_digests:
            return self.base_model == other.base_model
        shared = own.keys() & other_digests.keys()
        weights = any(name.endswith(_WEIGHTS) for name in shared)
        return weights and all(own[name] == other_digests[name] for name in shared)


def _public(run: RunRecord) -> str:
    """Names the public text of a run, which anybody may know."""
    text = run.public_data
    return "no public_data" if text is None else f"public_data {text.sha256[:16]}"


def digest_of(report: PrivacyReport) -> str:
    """Names a fitted model by its fits, each of which has a salt of its own in its report.

    What is spent on evaluations of it later makes no other model of it.
    """
    fits = tuple(step for step in report.private_steps if step.purpose == "fit")
    changing = {"epsilon", "dp_event", "max_records_per_unit", "ledger"}
    content = report.model_copy(update={"private_steps": fits}).model_dump_json(exclude=changing)
    return hashlib.sha256(content.encode()).hexdigest()
