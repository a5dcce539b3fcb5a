"""A model on this machine: what `taciturn.LLM` does where the data are here. It needs the engine.

Arguments, results and errors are described at the facade's methods of the same names.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
from peft import PeftModel

from taciturn.accounting.events import event_from_dict
from taciturn.certificate.envelope import Envelope
from taciturn.certificate.sign import check_promise, issue, released_audit
from taciturn.certificate.signers import Signer, find_signer
from taciturn.certificate.statement import CertifiedAudit, Statement
from taciturn.certificate.verify import read_certificate
from taciturn.data.filesystem import check_output_file, check_output_folder, local_path
from taciturn.data.tokens.tokenize import prepare
from taciturn.data.unit import unit_name
from taciturn.engine import evaluation
from taciturn.engine.auditing.extraction import Extraction, Question
from taciturn.engine.auditing.membership import Membership
from taciturn.engine.auditing.result_file import write_result
from taciturn.engine.evaluation.classifier import Downstream
from taciturn.engine.evaluation.features import Embedder
from taciturn.engine.generation.sample import checked_prompts, sample, stream
from taciturn.engine.generation.synthetic import write_parquet
from taciturn.engine.model import adapter
from taciturn.engine.model.load import LoadedModel, load_base, load_fitted, load_original
from taciturn.engine.training.loop import Interrupted
from taciturn.engine.training.torchrun import is_first_process
from taciturn.errors import (
    AdapterError,
    CallbackError,
    CertificateError,
    GuaranteeError,
    ModelError,
    OutputError,
    SpecError,
)
from taciturn.local import attack, evaluate
from taciturn.local import audit as auditing
from taciturn.local.account import Account
from taciturn.local.callbacks import Callbacks, evaluation_event
from taciturn.local.estimate import (
    Estimate,
    attached_loss,
    estimate,
    exact_kernels,
    measured_speed,
    public_facts,
)
from taciturn.local.evaluate import Evaluation, Subject
from taciturn.local.events import Callback
from taciturn.local.export.forms import Fitted, check_new, export
from taciturn.local.export.model_hub import push
from taciturn.local.export.origin import Origin
from taciturn.local.fit import Earlier, FitResult, Observer, fit
from taciturn.local.release import (
    add_audit,
    add_figures,
    commit_evaluation,
    private_folder,
    release,
    released_figures,
    update_report,
)
from taciturn.local.trackers import open_trackers, private_functions
from taciturn.notebook.frame import with_policy
from taciturn.planning.optimizer import OptimizerChoice
from taciturn.planning.plan import (
    TOKENS_PER_UNIT,
    TrainingPlan,
    check_target,
    make_plan,
    max_tokens,
)
from taciturn.planning.release import EvaluationPlan, plan_evaluation
from taciturn.reports.figures import ReleasedDownstream, ReleasedEvaluation, ReleasedFigures
from taciturn.reports.privacy import (
    BASE_POLICY,
    CERTIFICATE,
    DATA,
    PRIVATE,
    REPORT,
    Audit,
    LedgerTotal,
    PrivacyReport,
    PrivateStep,
    read_report,
)
from taciturn.reports.spending import check_units, with_steps
from taciturn.spec import (
    AuditSpec,
    DownstreamRunFields,
    DownstreamSpec,
    EvaluateFields,
    EvaluateRunFields,
    EvaluateSpec,
    ExportSpec,
    ExtractFields,
    ExtractSpec,
    FitFields,
    FitRunFields,
    FitSpec,
    MembershipFields,
    MembershipSpec,
    PerformanceSpec,
    PushSpec,
    RunSpec,
    SampleFields,
    SampleSpec,
    SynthesisFields,
    SynthesisSpec,
    check_text,
    is_whole,
    parse,
    take,
)

_EVALUATED = "The evaluation itself is complete and paid for; its figures are this error's result"
_NOTHING_KEPT = "nothing is kept that a fit could go on from"
_FIRST_PROCESS = (
    "of several processes, the first one alone releases figures about private units and signs "
    "certificates, once for all; call this where the environment variable RANK is 0"
)


@dataclass(frozen=True, slots=True)
class _Size:
    n_units: int
    tokens_per_unit: float


class LocalModel:
    """A causal language model in this process; it is loaded when first needed."""

    def __init__(self, name: str, performance: PerformanceSpec, base_at: str | None = None) -> None:
        self.name = name
        self._base_at = base_at
        self._performance = performance
        self._base: LoadedModel | None = None
        self._fitted: Any = None
        self._plan: TrainingPlan | None = None
        self._privacy: PrivacyReport | None = None
        self._spent: tuple[PrivateStep, ...] = ()
        self._figures = ReleasedFigures()
        self._folders: list[Path] = []
        self._fitted_in: Path | None = None
        self._audit: Audit | None = None
        folder = local_path(name, "model")
        fitted = os.path.isfile(folder / REPORT)
        if base_at is not None and not fitted:
            raise SpecError(
                f"base={base_at!r} says where the base of a fitted model is, and {name} is none; "
                "leave it out"
            )
        if fitted:
            self._privacy = read_report(folder / REPORT)
            self._spent = self._privacy.spent
            self._figures = released_figures(folder)
            self._folders.append(folder)
        self._from_folder = bool(self._folders)

    @classmethod
    def of(cls, base: LoadedModel) -> LocalModel:
        """Return a model of a base that is loaded already."""
        model = cls(base.name, PerformanceSpec())
        model._base = base
        return model

    @property
    def fitted(self) -> Any:
        """The fitted model itself; None before a fit, or after a sharded one."""
        return self._fitted

    @property
    def privacy(self) -> PrivacyReport | None:
        """The guarantee this model carries; None for a base model."""
        return self._privacy

    @property
    def policy(self) -> str:
        """The guarantee in one line, as it stands on every sample."""
        return BASE_POLICY if self._privacy is None else self._privacy.policy

    def fit(
        self,
        data: object,
        *,
        output: str | Path | None = None,
        resume: bool = False,
        observer: Observer | None = None,
        callbacks: Sequence[Callback] | None = None,
        show_private: bool = False,
        optimizer: OptimizerChoice | None = None,
        **fields: Unpack[FitRunFields],
    ) -> None:
        """Fine-tune on private text; `target_epsilon` says how private, or "unlimited" for not."""
        options: dict[str, Any] = dict(fields)
        run = take(RunSpec, options)
        spec = parse(FitSpec, self._with_performance(options))
        check_target(spec)
        if observer is not None and not isinstance(observer, Observer):
            raise SpecError(f"observer is {type(observer).__name__}; give a taciturn Observer")
        if self._privacy is not None and not self._from_folder:
            raise ModelError(
                f"{self.name} is already fitted ({self.policy}); make a new LLM(...) of the base, "
                "or save this one and fit LLM(folder) further"
            )
        if spec.sharding == "full" and output is None:
            raise SpecError("sharding='full' needs output=: the folder that all processes share")
        if run.signing_key is not None:
            check_text("signing_key", run.signing_key)
            check_promise(spec.private)
        # The other processes need no key: the first one signs.
        signer = find_signer(run.signing_key) if is_first_process() else None
        if output is not None:
            check_output_folder(local_path(output, "output"))
        own_folder = None if output is None else local_path(output, "output")
        trackers = open_trackers(run.report_to, own_folder, show_private=show_private)
        listeners = Callbacks.of(callbacks, trackers, private_functions(trackers))
        account = Account.open(run, data, spec)
        base = self._load(spec)
        earlier = None if self._privacy is None else Earlier(self._fitted, self._privacy)
        folder = self._temporary() if output is None else local_path(output, "output")
        try:
            result = fit(
                base,
                data,
                spec,
                folder,
                resume=resume,
                observer=listeners.observer(observer or Observer(), base.name, unit_name(spec)),
                signer=signer,
                spent=self._spent,
                earlier=earlier,
                pay=None if account is None else account.pay,
                optimizer=optimizer,
            )
        except BaseException as error:
            self._base = self._fitted = None
            listeners.end(error)
            if output is None and isinstance(error, Interrupted):
                raise KeyboardInterrupt(
                    f"stopped after step {error.step}; without output= {_NOTHING_KEPT}"
                ) from None
            if output is None and isinstance(error, CallbackError):
                listeners.raise_failure(f"The run stopped; without output= {_NOTHING_KEPT}")
            raise
        if account is not None:
            account.settle()
        self._take(result, folder)
        self._folders = [] if output is None else [folder]
        self._from_folder = False
        listeners.complete(result.report, own_folder)
        listeners.raise_failure("The fit itself is complete: the model is there, and can be saved")

    def plan(
        self, data: object = None, *, n_units: int | None = None, **fields: Unpack[FitFields]
    ) -> TrainingPlan:
        """Return what `fit` would do, without doing it; give the data or its number of units."""
        spec = parse(FitSpec, self._with_performance(dict(fields)))
        _check_units(n_units)
        check_target(spec)
        speed = None
        if spec.max_minutes is not None:
            unused = self._unused_base(spec)
            with exact_kernels(unused, spec):
                speed = measured_speed(unused, spec, attached_loss(unused, spec))
        base = self._load(spec)
        if n_units is None:
            n_units = self._size(data, spec).n_units
        return make_plan(spec, public_facts(base, n_units + spec.canaries), speed)

    def estimate(
        self, data: object = None, *, n_units: int | None = None, **fields: Unpack[FitFields]
    ) -> Estimate:
        """The plan, and what it would take here: time, memory."""
        spec = parse(FitSpec, self._with_performance(dict(fields)))
        _check_units(n_units)
        check_target(spec)
        size = _Size(n_units, TOKENS_PER_UNIT) if n_units is not None else self._size(data, spec)
        units = size.n_units + spec.canaries
        return estimate(self._unused_base(spec), spec, units, size.tokens_per_unit)

    def sample(self, prompts: Sequence[str], **fields: Unpack[SampleFields]) -> pd.DataFrame:
        """Continue each prompt; a frame with columns prompt, text, policy, `n` rows per prompt."""
        spec, base = parse(SampleSpec, dict(fields)), self._load()
        rows = sample(self._model(), base.tokenizer, prompts, spec, base.context_length)
        frame = pd.DataFrame(
            {"prompt": [row.prompt for row in rows], "text": [row.text for row in rows]},
            columns=["prompt", "text"],
        )
        frame["policy"] = self.policy
        return with_policy(frame, self.policy)

    def stream(self, prompt: str, spec: SampleSpec) -> Iterator[str]:
        """One continuation, piece by piece."""
        base = self._load()
        return stream(self._model(), base.tokenizer, prompt, spec, base.context_length)

    def plan_evaluation(self, n_units: int, **fields: Unpack[EvaluateFields]) -> EvaluationPlan:
        """Return how exactly `evaluate` would say by how much the fitted model is better."""
        _check_units(n_units)
        spec = parse(EvaluateSpec, dict(fields))
        fitted_delta = None if self.privacy is None else self.privacy.delta
        budget = evaluate.budget_of(spec, fitted_delta, n_units)
        if budget is None:
            raise SpecError("an evaluation of public text is free and exact; give target_epsilon")
        return plan_evaluation(
            n_units,
            budget.epsilon,
            budget.delta,
            budget.noise_multiplier,
            clusters=spec.samples > 0,
            pairs=spec.pairs,
        )

    def evaluate(
        self,
        data: object,
        *,
        embedder: Embedder | None = None,
        callbacks: Sequence[Callback] | None = None,
        **fields: Unpack[EvaluateRunFields],
    ) -> Evaluation:
        """Judge how well base and fitted model predict `data`, and how like it they write."""
        options: dict[str, Any] = dict(fields)
        run, spec = take(RunSpec, options), parse(EvaluateSpec, options)
        listeners = self._evaluation_callbacks(callbacks, run)
        with listeners.evaluating(self.policy):
            subject = self._subject(run.signing_key, Account.open(run, data, spec), listeners)
            result = evaluate.evaluate(subject, data, spec, embedder)
        listeners.raise_failure(_EVALUATED, result)
        return result

    def _evaluation_callbacks(
        self, callbacks: Sequence[Callback] | None, run: RunSpec
    ) -> Callbacks:
        """Callbacks of an evaluation; trackers are opened now, before anything is spent."""
        folder = self._folders[-1] if self._folders else None
        trackers = open_trackers(run.report_to, folder)
        for tracker in trackers:
            tracker.begin("evaluation", {"model": self.name, "policy": self.policy})
        return Callbacks.of(callbacks, trackers)

    def audit(self, *, confidence: float = 0.95, signing_key: str | None = None) -> Audit:
        """Attack the model: a lower bound on epsilon, beside what is promised."""
        spec = parse(AuditSpec, {"confidence": confidence})
        expected = auditing.check_canaries(self._privacy, spec.confidence)
        assert self._privacy is not None
        self._check_renewal("an audit", signing_key)
        folders = [self._fitted_in] if self._fitted_in is not None else self._folders
        planted = auditing.find_canaries(expected, [path / PRIVATE / DATA for path in folders])
        result = auditing.audit(self._subject(signing_key), self._privacy, planted, spec)
        signer = find_signer(signing_key)
        for folder in self._folders:
            add_audit(folder, self._privacy, result, signer)
        self._audit = result
        return result

    def downstream(
        self, synthetic: object, test: object, **fields: Unpack[DownstreamRunFields]
    ) -> Downstream:
        """Train a classifier on synthetic text with labels, and test it on real text."""
        options: dict[str, Any] = dict(fields)
        run, spec = take(RunSpec, options), parse(DownstreamSpec, options)
        listeners = self._evaluation_callbacks(None, run)
        with listeners.evaluating(self.policy):
            subject = self._subject(run.signing_key, Account.open(run, test, spec), listeners)
            result = evaluate.downstream(subject, synthetic, test, spec)
        listeners.raise_failure(_EVALUATED, result)
        return result

    def synthesize(
        self,
        n: int,
        *,
        output: str | Path | None = None,
        prompts: Sequence[str] | Mapping[str, str] = ("",),
        **fields: Unpack[SynthesisFields],
    ) -> pd.DataFrame:
        """Write `n` records: a frame, and with `output` a Parquet file with the guarantee in it."""
        spec = parse(SynthesisSpec, dict(fields))
        path = None if output is None else local_path(output, "output")
        if path is not None:
            check_output_file(path, ".parquet")
        labels = list(prompts) if isinstance(prompts, Mapping) else None
        starts = checked_prompts(prompts.values() if isinstance(prompts, Mapping) else prompts)
        turns = evaluate.in_turn(starts, n)
        frame = self.sample([starts[turn] for turn in turns], **spec.model_dump())
        frame["text"] = frame["prompt"] + frame["text"]
        frame = frame[["text", "prompt", "policy"]]
        if labels is not None:
            frame.insert(1, "label", [labels[turn] for turn in turns])
        if path is not None:
            write_parquet({name: frame[name].tolist() for name in frame}, self._promise(), path)
        return with_policy(frame, self.policy)

    def log_probability(self, prompt: str, continuation: str) -> float:
        """Natural logarithm of the probability that `prompt` is continued by `continuation`."""
        check_text("prompt", prompt)
        check_text("continuation", continuation)
        base = self._load()
        (log_probability,) = evaluation.log_probabilities(
            self._model(), base.tokenizer, prompt, [continuation], base.context_length
        )
        return log_probability

    def extract(
        self,
        secret: str,
        *,
        prefix: str = "",
        telltale: str | None = None,
        output: str | Path | None = None,
        **fields: Unpack[ExtractFields],
    ) -> Extraction:
        """Does the model tell a secret, and would the base model have guessed it?"""
        spec = parse(ExtractSpec, dict(fields))
        question = Question.of(secret, prefix, telltale)
        path = None if output is None else local_path(output, "output")
        if path is not None:
            check_output_file(path, ".json")
        result = attack.extract(self._subject(None), question, spec, self.policy)
        if path is not None:
            write_result(result.to_dict(), path)
        return result

    def membership(
        self,
        members: object,
        non_members: object,
        *,
        output: str | None = None,
        **fields: Unpack[MembershipFields],
    ) -> Membership:
        """Can the model tell who was in its training data? For the data's owner."""
        spec = parse(MembershipSpec, dict(fields))
        path = None if output is None else self._private_file(output)
        result = attack.membership(
            self._subject(None), members, non_members, spec, self._privacy, self.policy
        )
        if path is not None:
            private_folder(path.parent)
            write_result(result.to_dict(), path)
        return result

    def certificate(
        self, *, signing_key: str | None = None, audit: CertifiedAudit | None = None
    ) -> Statement:
        """Return what is certified of this model, signed into `certificate.json` of its folder."""
        if self._privacy is None:
            raise CertificateError("a base model has no certificate: nothing was fitted; call fit")
        check_promise(self._privacy.guarantee != "none")
        if not self._folders:
            raise CertificateError(
                "the certificate covers the model's files; write them first: model.save(folder)"
            )
        if not is_first_process():
            raise CertificateError(_FIRST_PROCESS)
        signer = find_signer(signing_key)
        if signer is not None:
            statements = [issue(folder, signer, audit=audit) for folder in self._folders]
            return statements[-1]
        path = self._folders[-1] / CERTIFICATE
        if audit is not None or not path.is_file():
            raise CertificateError(
                f"{path.parent} needs a signing key for its certificate; give signing_key=..., or "
                "set TACITURN_SIGNING_KEY. `taciturn cert keygen` makes one"
            )
        return Statement.from_bytes(Envelope.from_bytes(read_certificate(path)).payload)

    def save(
        self, folder: str | Path, *, merged: bool = False, signing_key: str | None = None
    ) -> Path:
        """Write adapter, config, tokenizer, model card and privacy report; nothing private."""
        if self._privacy is not None:
            self._load()
        if self._fitted is None or self._privacy is None:
            raise AdapterError("there is nothing to save: call fit first")
        output = local_path(folder, "folder")
        check_output_folder(output)
        if (output / REPORT).exists():
            raise AdapterError(f"{output} already holds a fitted model; choose another folder")
        if signing_key is not None:
            check_promise(self._privacy.guarantee != "none")
        if is_first_process():
            self._release(output, find_signer(signing_key), merged=merged)
        self._folders.append(output)
        return output

    def export(
        self,
        folder: str | Path,
        *,
        form: str = "merged",
        weights: str = "f16",
        signing_key: str | None = None,
    ) -> Path:
        """Write the model in a form that others serve: merged, as a GGUF file, or for Ollama."""
        spec = parse(ExportSpec, {"form": form, "weights": weights})
        output = local_path(folder, "folder")
        check_new(output)
        origin = self._origin("export")
        signer = find_signer(signing_key) if is_first_process() else None
        signer = origin.check_signing(signer, demanded=signing_key is not None)
        fitted = Fitted(self._fitted, self._load(), origin, self._figures, self._known_audit())
        if is_first_process():
            export(fitted, output, spec, signer)
        return output

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = True,
        message: str | None = None,
        without_guarantee: bool = False,
        token: str | None = None,
    ) -> str:
        """Send the released files to a model hub, in one commit; returns its address."""
        fields = {"private": private, "message": message, "without_guarantee": without_guarantee}
        spec = parse(PushSpec, fields)
        if self._privacy is None:
            raise AdapterError("there is nothing to push: call fit first")
        if self._folders:
            folder = self._folders[-1]
            return push(folder, repository, self._privacy, self._figures, spec, token)
        with tempfile.TemporaryDirectory() as home:
            folder = Path(home) / "released"
            self._release(folder, None, merged=False)
            return push(folder, repository, self._privacy, self._figures, spec, token)

    def _origin(self, purpose: str) -> Origin:
        """Return this model as its report and its certificate say; it is loaded."""
        if self._privacy is not None:
            self._load()
        if self._fitted is None or self._privacy is None:
            raise AdapterError(f"there is nothing to {purpose}: call fit first")
        return Origin.of(self._privacy, self._folders[-1] if self._folders else None)

    def _release(self, output: Path, signer: Signer | None, *, merged: bool) -> None:
        assert self._privacy is not None  # only of a fitted model
        model = self._fitted
        if merged and isinstance(model, PeftModel):
            model = adapter.merged(model)
        figures, audit = self._figures, self._known_audit()
        release(model, self._load(), self._privacy, output, signer, figures=figures, audit=audit)

    def _known_audit(self) -> Audit | None:
        """Return what an audit has found of this model, if there was one."""
        audits = [self._audit, *map(released_audit, self._folders)]
        return next((audit for audit in audits if audit is not None), None)

    def _subject(
        self,
        signing_key: str | None,
        account: Account | None = None,
        listeners: Callbacks | None = None,
    ) -> Subject:
        base = self._load()
        delta = None if self._privacy is None else self._privacy.delta
        spending = _Spending(self, signing_key, account, listeners or Callbacks())
        return Subject(base, self._fitted, self._base_model, delta, spending)

    def _private_file(self, name: str) -> Path:
        """Return the path of a private result of that name; raises if there is no such place."""
        if Path(name).name != name or not name.endswith(".json"):
            raise SpecError(
                f"output {name} must be a name without a folder that ends in .json; it goes to the "
                "private folder of the model"
            )
        if not self._folders:
            raise OutputError(
                "the result is private and this model has no folder to keep it in; fit with "
                "output=..., save the model, or leave output out"
            )
        path = self._folders[-1] / PRIVATE / name
        if path.exists():
            raise OutputError(f"{path} already exists; choose another name or remove it")
        return path

    def _check_renewal(self, cause: str, signing_key: str | None) -> None:
        """Raise unless this process may write, and can sign anew what `cause` changes."""
        if not is_first_process():
            raise GuaranteeError(_FIRST_PROCESS)
        certified = [folder for folder in self._folders if (folder / CERTIFICATE).is_file()]
        if certified and find_signer(signing_key) is None:
            raise CertificateError(
                f"{cause} changes what the certificate in {certified[0]} must say, "
                "and there is no key to sign it anew; give signing_key=..., or set "
                "TACITURN_SIGNING_KEY"
            )

    def _promise(self) -> dict[str, object]:
        """Return what goes with synthetic text: policy, report, and certificate if there is one."""
        report = None if self._privacy is None else self._privacy.model_dump(mode="json")
        paths = [folder / CERTIFICATE for folder in self._folders[-1:]]
        certificate = next(
            (path.read_text(encoding="utf-8") for path in paths if path.is_file()), None
        )
        return {"policy": self.policy, "privacy_report": report, "certificate": certificate}

    def _charge(
        self, step: PrivateStep, fingerprint: str, signer: Signer | None, paid: LedgerTotal | None
    ) -> None:
        """Compose a step into the guarantee, in every folder of this model, then here.

        Args:
            paid: what a ledger adds up to with this step, if it was charged in one.
        """
        homes = [folder / PRIVATE for folder in self._folders]
        commitment = commit_evaluation(homes, fingerprint)
        step = step.model_copy(update={"dataset_commitment": commitment})
        spent = (*self._spent, step)
        if self._privacy is not None:
            # Without a ledger the sum that stood there is no longer that of all runs.
            report = with_steps(self._privacy, spent).model_copy(update={"ledger": paid})
            for folder in self._folders:
                update_report(folder, self._privacy, report, signer)
            self._privacy = report
        self._spent = spent

    def _keep(self, figures: ReleasedEvaluation | ReleasedDownstream) -> None:
        """Put released figures into the model's folders, where they can be written."""
        if self._privacy is None or not is_first_process():
            return
        self._figures = self._figures.plus(figures)
        for folder in self._folders:
            if os.access(folder, os.W_OK):
                add_figures(folder, self._figures)

    def _load(self, spec: PerformanceSpec | None = None) -> LoadedModel:
        if self._base is None:
            spec = spec or self._performance
            if self._privacy is None:
                self._base = load_base(self.name, spec)
            else:
                folder = Path(self.name).expanduser()
                self._base, self._fitted = load_fitted(folder, self._privacy, spec, self._base_at)
        return self._base

    def _unused_base(self, spec: PerformanceSpec) -> LoadedModel:
        """A base that adapters may be attached to: no fit or sample uses it afterwards."""
        if self._privacy is not None:
            return self._original()
        base = self._load(spec)
        self._base = None
        return base

    def _model(self) -> Any:
        return self._load().model if self._fitted is None else self._fitted

    def _base_model(self) -> AbstractContextManager[Any]:
        return evaluation.base_model(self._fitted, self._load().model, self._original)

    def _original(self) -> LoadedModel:
        assert self._privacy is not None  # only of a fitted model
        beside = self._folders[-1] if self._folders else None
        return load_original(self._privacy, self._performance, beside, self._base_at)

    def _take(self, result: FitResult, folder: Path) -> None:
        if result.model is None:
            # Sharded over processes that have parted; what was released is read when needed.
            self._base, self.name = None, str(folder)
        self._fitted, self._plan, self._privacy = result.model, result.plan, result.report
        self._fitted_in, self._audit = folder, None
        self._spent = result.report.spent
        self._figures = ReleasedFigures()

    def _with_performance(self, fields: dict[str, Any]) -> dict[str, Any]:
        own = self._performance.model_dump(include={"device", "dtype", "quantization"})
        for name, value in own.items():
            if value is not None and fields.setdefault(name, value) != value:
                raise SpecError(
                    f"{name}={fields[name]!r} differs from the {value!r} this LLM was made with"
                )
        return fields

    def _size(self, data: object, spec: FitSpec) -> _Size:
        if data is None:
            raise SpecError("plan needs the data, or n_units=...: how many units it has")
        base = self._load(spec)
        limit = max_tokens(spec, base.context_length)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "data"
            dataset = prepare(data, spec, base.tokenizer, limit, target, spec.seed)
            return _Size(dataset.n_units, dataset.n_tokens / dataset.n_units)

    def _temporary(self) -> Path:
        folder = tempfile.mkdtemp(prefix="taciturn-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder) / "output"


def _check_units(n_units: int | None) -> None:
    if n_units is not None and not (is_whole(n_units) and 1 <= n_units <= 10**12):
        raise SpecError(
            f"n_units={n_units!r:.100} must be a whole number from 1 to 10^12: how many privacy "
            "units there are"
        )


@dataclass(frozen=True, slots=True)
class _Spending:
    """Spending of a model, as an evaluation sees it."""

    model: LocalModel
    signing_key: str | None
    account: Account | None
    listeners: Callbacks

    def check(self, unit: str) -> None:
        """Raise if a step about `unit` could not be composed, or the certificate not renewed."""
        self.model._check_renewal("a private evaluation", self.signing_key)
        check_units([*(step.privacy_unit for step in self.model._spent), unit])

    def look(self, delta: float) -> None:
        """Write a look at exact private figures down, where there is a ledger."""
        if self.account is not None:
            self.account.record_exception(delta)

    def charge(self, step: PrivateStep, delta: float, fingerprint: str) -> None:
        """Add the step to what the model has spent, and first of all to the ledger."""
        signer, paid = find_signer(self.signing_key), None
        if self.account is not None:
            paid = self.account.charge(event_from_dict(step.dp_event), delta)
        self.model._charge(step, fingerprint, signer, paid)
        if self.account is not None:
            self.account.settle()

    def keep(self, figures: ReleasedEvaluation | ReleasedDownstream) -> None:
        """Put figures into the model's folders and its page, and tell callbacks."""
        self.model._keep(figures)
        self.listeners.emit(evaluation_event(figures))
