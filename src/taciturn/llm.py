"""LLM, the one object a practitioner needs: fit, sample, evaluate, save.

Where the data are decides where it runs: rows that are here are fitted here (`local.py`, which
needs the engine), a dataset of a gateway where the gateway is (`sdk/`, which needs no torch).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from taciturn.collector import nothing_collected
from taciturn.embedded import TINY_MEDICAL
from taciturn.errors import MissingDependencyError, ModelError, SpecError
from taciturn.reports.privacy import BASE_POLICY, REPORT, Audit, PrivacyReport, read_report
from taciturn.sdk.client import Client
from taciturn.sdk.dataset import RemoteDataset
from taciturn.sdk.job import Job
from taciturn.sdk.model import RemoteModel
from taciturn.spec import (
    GATEWAY,
    DownstreamRunFields,
    EvaluateFields,
    EvaluateRunFields,
    ExtractFields,
    FitFields,
    FitRunFields,
    MembershipFields,
    PerformanceSpec,
    RunSpec,
    SampleFields,
    SampleSpec,
    SynthesisFields,
    check_local,
    parse,
)

if TYPE_CHECKING:
    from taciturn.certificate.statement import CertifiedAudit, Statement
    from taciturn.engine.auditing.extraction import Extraction
    from taciturn.engine.auditing.membership import Membership
    from taciturn.engine.evaluation.classifier import Downstream
    from taciturn.engine.evaluation.features import Embedder
    from taciturn.local.estimate import Estimate
    from taciturn.local.evaluate import Evaluation
    from taciturn.local.events import Callback
    from taciturn.local.fit import Observer
    from taciturn.local.model import LocalModel
    from taciturn.notebook.frame import PolicyFrame
    from taciturn.planning.plan import TrainingPlan
    from taciturn.planning.release import EvaluationPlan
    from taciturn.sdk.evaluation import RemoteEvaluation


_LONGEST_NAME = 4096


class FitOptions(FitRunFields, total=False):
    """The keyword arguments of `LLM.fit`, for editors and mypy."""

    output: str | Path | None
    resume: bool
    observer: Observer | None
    callbacks: Sequence[Callback] | None
    show_private: bool
    name: str | None
    purpose: str | None


class LLM:
    """A causal language model that can be fine-tuned without making it talk.

    Examples:
        >>> model = taciturn.LLM("taciturn/tiny-medical")
        >>> model = model.fit(
        ...     "notes.csv", text_field="text", privacy_unit="patient_id", target_epsilon=3
        ... )
        >>> print(model.policy)
        DP (epsilon=..., delta=0.001, unit=patient_id)
        >>> frame = model.sample(["The patient"], max_new_tokens=20)

        With a dataset of a gateway, `taciturn.Client().dataset("phee")`, in place of the file, the
        same lines run where the data is.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        base: str | Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        quantization: str | None = None,
    ) -> None:
        """Name a model; it is loaded when first needed.

        Args:
            model: hub id, local folder, GGUF file, "taciturn/tiny-medical", a folder that `save`
                wrote or the hub id that `push_to_hub` sent it to, or "gateway:ID" of a model that
                was fitted behind a gateway.
            base: of a folder that `save` wrote: where its base is, if that has moved. It must hold
                the weights that were fitted.
            device: "cpu", "cuda", "cuda:1", "mps"; by default the best there is.
            dtype: "float32" or "bfloat16"; by default bfloat16 on a GPU, float32 elsewhere.
            quantization: "int8" or "nf4": load the frozen base with fewer bits.

        Raises:
            SpecError: a value that is not one of these; or one of them for a gateway's model, which
                has no place for it.
            ModelError: the folder's report is damaged.
            AuthenticationError: "gateway:ID", and no gateway or no token is named anywhere.

        Examples:
            >>> model = taciturn.LLM("taciturn/tiny-medical", device="cpu", dtype="float32")
            >>> model.policy
            'public (base model, no private data)'
        """
        for name, value in (("model", model), ("base", "" if base is None else base)):
            if not isinstance(value, str | os.PathLike):
                raise SpecError(f"{name} is {type(value).__name__}; give a name or a path")
            if len(os.fsdecode(value)) > _LONGEST_NAME:
                raise SpecError(
                    f"{name} is a name of {len(os.fsdecode(value))} characters, and the longest "
                    f"path has {_LONGEST_NAME}; give a hub id or a path"
                )
        self.name = model = os.fsdecode(model)
        self._performance = parse(
            PerformanceSpec, {"device": device, "dtype": dtype, "quantization": quantization}
        )
        self._base_at = None if base is None else os.fsdecode(base)
        self._local: LocalModel | None = None
        self._remote: RemoteModel | Job | None = None
        self._report: PrivacyReport | None = None
        self._on_hub: Path | None = None
        # True once nobody has to ask the hub any more whether the name is a fitted model's.
        self._is_settled = os.path.exists(os.path.expanduser(model)) or model == TINY_MEDICAL
        report = Path(os.path.expanduser(model)) / REPORT
        if model.startswith(GATEWAY):
            options = {"device": device, "dtype": dtype, "quantization": quantization}
            check_local({**options, "base": base}, *options, "base")
            self._remote = Client().model(model.removeprefix(GATEWAY))
        elif os.path.isfile(report):  # False for a name that cannot be
            self._report = read_report(report)
            # Read now: damage is told now, what it has spent is that of this moment. Where there
            # is no engine, what it promises can still be read.
            with suppress(MissingDependencyError):
                self._local_model("a fitted model")

    @property
    def privacy(self) -> PrivacyReport | None:
        """The guarantee this model carries; None for a base model. Waits for a job that fits it.

        Raises:
            JobFailedError: the job that was to fit it failed or was cancelled.

        Examples:
            >>> report = model.privacy
            >>> report.epsilon <= 3, report.privacy_unit
            (True, 'patient_id')
            >>> taciturn.LLM("taciturn/tiny-medical").privacy is None
            True
        """
        if self._remote is not None:
            return self._remote_model().privacy
        self._look_on_hub()
        return self._report if self._local is None else self._local.privacy

    @property
    def policy(self) -> str:
        """The guarantee in one line, as it stands on every sample.

        Examples:
            >>> model.policy
            'DP (epsilon=..., delta=0.001, unit=patient_id)'
        """
        if self._remote is not None:
            return self._remote_model().policy
        privacy = self.privacy
        return BASE_POLICY if privacy is None else privacy.policy

    @overload
    def fit(
        self, data: object, *, wait: Literal[True] = True, **fields: Unpack[FitOptions]
    ) -> LLM: ...

    @overload
    def fit(self, data: object, *, wait: Literal[False], **fields: Unpack[FitOptions]) -> Job: ...

    def fit(self, data: object, *, wait: bool = True, **fields: Unpack[FitOptions]) -> LLM | Job:
        """Fine-tune on private text; `target_epsilon` says how private, or "unlimited" for not.

        An `LLM` of a saved folder is fitted further: `target_epsilon` is then this fit's own, and
        `privacy` and the certificate state what all fits cost together.

        Args:
            data: path, glob or URL of JSON, CSV, Parquet or Arrow; pandas or polars frame; Arrow
                table; `datasets.Dataset`; one column of these; list of strings. Or a dataset of a
                gateway: the fit is then a job there, and this model the one that comes of it.
            output: folder for the result; its subfolder `private/` makes the run resumable.
                Without it the private state lives in a temporary folder that is removed.
            resume: go on with the interrupted run in `output`.
            observer: the owner's own view of the plan, progress and private metrics.
            callbacks: functions of one public event each: `PlanEvent`, `StepEvent`,
                `EpsilonEvent`, `CheckpointEvent`, `EndEvent`. One that raises ends the run with a
                checkpoint, as a `CallbackError`.
            report_to: trackers that get the same: "tensorboard", "mlflow", "wandb", "csv", or
                "csv:FILE" and the like.
            show_private: the owner's own trackers on a path of this machine get private curves too.
            signing_key: signs `certificate.json` in `output`; see `certificate`.
            ledger: `sqlite:///ledger.db`: a file, made if it is not there, that adds up what all
                runs on the same data and unit cost. The fit is charged before its first step.
            ledger_namespace: what the data are called there; by default where they are, which
                rows in memory have to be told.
            wait: a gateway's job: False returns its handle, a `taciturn.Job`, at once.
            name: a gateway's job: what the model is called there.
            purpose: a gateway's job: one line for whoever has to approve it.
            fields: the fields of `taciturn.spec.FitSpec`. Unknown ones raise. `public_data` takes
                what `data` takes: text that you declare public. It is learned from first, without
                noise, and the guarantee does not cover it.

        Returns:
            This model, fitted; of a gateway's dataset with `wait=False`, the job's handle.

        Raises:
            SpecError: an argument is outside its bound or does not exist (`UnknownFieldError`), or
                no guarantee can follow from it (`PrivacyParameterError`).
            DataError: the rows cannot be read or used as they are.
            ModelError: the base model cannot be loaded or fitted.
            BudgetExceededError: a ledger or a gateway's budget has no room for it. Nothing was
                spent.
            OutputError: `output` cannot be written.
            CallbackError: a callback raised. The run has stopped, and can be resumed if it has an
                `output`.
            JobFailedError: a gateway's job failed or was cancelled.

        Examples:
            The model of this page's session was fitted to rows that are here:

            >>> model.privacy.guarantee
            'differential privacy'

            Where the rows are behind a gateway, and without waiting:

            >>> job = taciturn.LLM("taciturn/tiny-medical").fit(data, target_epsilon=3, wait=False)
            >>> job.id
            'job_...'
        """
        options: dict[str, Any] = dict(fields)
        if isinstance(data, RemoteDataset):
            own = ("output", "resume", "observer", "callbacks", "show_private")
            check_local(options, *own, *RunSpec.model_fields)
            return self._fit_remotely(data, options, wait=wait)
        about = (options.pop("name", None), options.pop("purpose", None))
        if not wait or about != (None, None):
            raise SpecError("wait, name and purpose are for datasets of a gateway; leave them out")
        local = self._local_model("fit")
        local.fit(data, **options)
        self.name = local.name
        return self

    def plan(
        self, data: object = None, *, n_units: int | None = None, **fields: Unpack[FitFields]
    ) -> TrainingPlan:
        """Return what `fit` would do, without doing it; give the data or its number of units.

        Args:
            data: whatever `fit` takes; it is read only to count its units.
            n_units: number of privacy units, in place of data. A plan depends on nothing else of
                them.
            fields: as of `fit`.

        Returns:
            Steps, batch size in units, learning rate, noise multiplier, delta, worth and the
            reasons for them; printed, each is a line.

        Raises:
            SpecError: neither data nor n_units; or an argument that `fit` would refuse, too.
            DataError: the rows cannot be read.

        Examples:
            >>> plan = model.plan(n_units=10_000, target_epsilon=3)
            >>> plan.n_units, plan.privacy.delta
            (10000, 1e-05)
            >>> plan.privacy.noise_multiplier > 0
            True
        """
        if isinstance(data, RemoteDataset):
            return data.plan(self.name, **self._with_performance(dict(fields))).plan
        return self._local_model("plan").plan(data, n_units=n_units, **fields)

    def estimate(
        self, data: object = None, *, n_units: int | None = None, **fields: Unpack[FitFields]
    ) -> Estimate:
        """Return the plan, and what it would take here: time, memory.

        With data, the time follows from its real lengths, which are its owner's to see; with
        `n_units` alone, from 64 tokens per unit.

        Args:
            data: whatever `fit` takes; not a gateway's dataset.
            n_units: number of privacy units, in place of data.
            fields: as of `fit`.

        Returns:
            `plan`; `cost.seconds` and `cost.memory` in bytes; in `other_times` what half, twice and
            four times the time would buy.

        Raises:
            SpecError: neither data nor n_units, or a gateway's dataset.
            DataError: the rows cannot be read.

        Examples:
            >>> estimate = model.estimate(n_units=500, target_epsilon=3)
            >>> estimate.cost.seconds > 0
            True
            >>> [choice.times for choice in estimate.other_times]
            [0.5, 1.0, 2.0, 4.0]
        """
        if isinstance(data, RemoteDataset):
            raise SpecError("time and memory are those of another machine there; call plan instead")
        return self._local_model("estimate").estimate(data, n_units=n_units, **fields)

    def sample(self, prompts: Sequence[str], **fields: Unpack[SampleFields]) -> PolicyFrame:
        """Continue each prompt.

        Args:
            prompts: beginnings of texts; an empty one begins where a text begins.
            fields: the fields of `taciturn.spec.SampleSpec`: `n` completions per prompt,
                `temperature`, `top_p`, `max_new_tokens` (tokens, not characters), `seed`,
                `batch_size`.

        Returns:
            A frame with `n` rows per prompt; columns prompt, text and policy.

        Raises:
            SpecError: a field is outside its bound, or a prompt has more tokens than the model
                reads.

        Examples:
            >>> frame = model.sample(["The patient", "Cough since"], n=2, max_new_tokens=5, seed=1)
            >>> list(frame.columns), len(frame)
            (['prompt', 'text', 'policy'], 4)
        """
        return self._model("sample").sample(prompts, **fields)

    def stream(self, prompt: str, spec: SampleSpec) -> Iterator[str]:
        """Yield one continuation, piece by piece.

        Args:
            prompt: beginning of the text.
            spec: how it goes on, as in `sample`; `n` is not looked at.

        Raises:
            SpecError: the prompt has more tokens than the model reads.

        Examples:
            >>> from taciturn.spec import SampleSpec
            >>> text = "".join(model.stream("The patient", SampleSpec(max_new_tokens=20)))
        """
        return self._model("stream").stream(prompt, spec)

    def plan_evaluation(
        self,
        data: RemoteDataset | None = None,
        *,
        n_units: int | None = None,
        **fields: Unpack[EvaluateFields],
    ) -> EvaluationPlan:
        """Return how exactly `evaluate` would say by how much the fitted model is better.

        Args:
            data: a gateway's dataset, for a gateway's model.
            n_units: how many units would be judged here.
            fields: as of `evaluate`; `target_epsilon` is needed.

        Returns:
            `epsilon` and `delta` of the release, `n_units`, and `gain_std`, `accuracy_gain_std`:
            the standard deviation of the noise in what is gained, in nats per token and as a share.

        Raises:
            SpecError: no `target_epsilon`, or nothing says how many units there are.

        Examples:
            >>> plan = model.plan_evaluation(n_units=500, target_epsilon=0.5)
            >>> plan.epsilon, plan.n_units
            (0.5, 500)
            >>> plan.gain_std > 0
            True
        """
        if self._remote is not None:
            if data is None:
                raise SpecError("give the gateway's dataset that would be judged")
            return self._remote_model().plan_evaluation(data, **fields)
        if n_units is None:
            raise SpecError("give n_units: how many privacy units would be judged")
        return self._local_model("plan_evaluation").plan_evaluation(n_units, **fields)

    def evaluate(
        self,
        data: object,
        *,
        embedder: Embedder | None = None,
        callbacks: Sequence[Callback] | None = None,
        **fields: Unpack[EvaluateRunFields],
    ) -> Evaluation | RemoteEvaluation:
        """Judge how well base and fitted model predict `data`, and how like it they write.

        Without `target_epsilon`, data are public: figures are exact and free. With it, they are
        private units: each unit's figures are bounded, noise is added, and the cost is composed
        into `privacy`, in the model's folder too, before a figure is returned.
        `show_private=True` gives exact figures of private rows to their owner, who must not pass
        them on.

        Args:
            data: whatever `fit` takes; a gateway's dataset for a gateway's model, or public texts.
            embedder: texts to vectors for the comparison of samples; by default hashed n-grams
                and the base model's surprise.
            callbacks: functions of an `EvaluationEvent` with the released figures, and `EndEvent`.
            report_to: as in `fit`; a tracker gets released figures alone.
            signing_key: as in `certificate`; needed where the folder has a certificate, since
                a private evaluation changes what that must say.
            ledger: as in `fit`; it is charged before the noise is drawn. A look at exact private
                figures is written down there, too, as one that has no guarantee.
            ledger_namespace: as in `fit`.
            fields: the fields of `taciturn.spec.EvaluateSpec`; `samples=200` writes and compares.

        Returns:
            Scores of base and fitted model in nats per token, perplexity and token accuracy (a
            share), each with the standard deviation of its noise; `policy` says what the figures
            are.

        Raises:
            SpecError, DataError: bad input; nothing was charged.
            CertificateError: the certificate cannot be renewed; nothing was charged.

        Examples:
            >>> evaluation = model.evaluate("public.csv", text_field="text")
            >>> evaluation.basis
            'public'
            >>> evaluation.fitted.perplexity > 1
            True
        """
        if self._remote is not None:
            options: dict[str, Any] = {"embedder": embedder, "callbacks": callbacks, **fields}
            check_local(options, "embedder", "callbacks", *RunSpec.model_fields)
            return self._remote_model().evaluate(data, **options)
        if isinstance(data, RemoteDataset):
            raise SpecError(
                f"{data.name} is behind a gateway and {self.name} is here; fit a model on it there"
            )
        return self._local_model("evaluate").evaluate(
            data, embedder=embedder, callbacks=callbacks, **fields
        )

    def audit(self, *, confidence: float = 0.95, signing_key: str | None = None) -> Audit:
        """Attack the model: a lower bound on epsilon, beside what is promised.

        For a model that was fitted with `canaries`, where its private folder is. One attack, black
        box: from losses alone it is guessed which canaries were in (Steinke et al. 2023). The
        result costs nothing, since it depends on no row but through the model; it goes into the
        model's folder (`audit.json`, model card) and its certificate.

        Args:
            confidence: with which the bound holds; at least 0.5.
            signing_key: as in `certificate`; needed where the folder has a certificate.

        Returns:
            See taciturn.Audit. If its `refuted` is true, the guarantee is broken; more was found
            than is promised, and no certificate is issued.

        Raises:
            SpecError: no canaries, or too few for any bound.
            DataError: the private folder is not there, or its canaries were edited.
            CertificateError: the certificate cannot be renewed. Nothing is written then.

        Examples:
            >>> audit = model.audit(confidence=0.9)
            >>> audit.refuted
            False
            >>> 0 <= audit.epsilon_lower_bound <= audit.promised_epsilon
            True
        """
        if self._remote is not None:
            check_local({"signing_key": signing_key}, "signing_key")
            return self._remote_model().audit(confidence=confidence)
        return self._local_model("audit").audit(confidence=confidence, signing_key=signing_key)

    def downstream(
        self, synthetic: object, test: object, **fields: Unpack[DownstreamRunFields]
    ) -> Downstream:
        """Train a classifier on synthetic text with labels, and test it on real text.

        The test is public, or private as in `evaluate`. Both data sets name text and labels alike;
        `select` and `privacy_unit` apply to the test.

        Args:
            synthetic: texts with labels, as `synthesize` writes them from a mapping of prompts.
            test: real texts with labels; whatever `fit` takes, but for a gateway's dataset.
            fields: the fields of `taciturn.spec.DownstreamSpec`: `label_field`, and those of
                `evaluate` that say how the test is read and what it may cost.

        Returns:
            `accuracy` and `majority_accuracy` (that of always guessing the commonest label) as
            shares, the standard deviation of the noise in both, and `macro_f1` of a public test.

        Raises:
            SpecError, DataError: bad input; nothing was charged.
            CertificateError: the certificate cannot be renewed; nothing was charged.

        Examples:
            >>> synthetic = model.synthesize(
            ...     8, prompts={"cough": "A cough", "fever": "A fever"}, max_new_tokens=5
            ... )
            >>> result = model.downstream(synthetic, "labelled.csv", text_field="text")
            >>> 0 <= result.accuracy <= 1
            True
        """
        return self._local_model("downstream").downstream(synthetic, test, **fields)

    def synthesize(
        self,
        n: int,
        *,
        output: str | Path | None = None,
        prompts: Sequence[str] | Mapping[str, str] = ("",),
        **fields: Unpack[SynthesisFields],
    ) -> PolicyFrame:
        """Write `n` records: a frame, and with `output` a Parquet file with the guarantee in it.

        Sampling is post-processing: it costs nothing more, whatever `n` is.

        Args:
            n: records to write, at least 1.
            output: Parquet file to make; its metadata hold policy, report and certificate.
            prompts: how records begin, in turn; a mapping of label to prompt adds a column "label".
            fields: the fields of `taciturn.spec.SynthesisSpec`: `temperature`, `top_p`,
                `max_new_tokens`, `seed`, `batch_size`.

        Returns:
            Columns text (prompt and continuation), prompt, label if any, and policy.

        Raises:
            SpecError: n or a field is outside its bound.
            OutputError: `output` is there already, does not end in .parquet, or cannot be written.

        Examples:
            >>> frame = model.synthesize(4, output="synthetic.parquet", max_new_tokens=10)
            >>> list(frame.columns)
            ['text', 'prompt', 'policy']
        """
        return self._model("synthesize").synthesize(n, output=output, prompts=prompts, **fields)

    def log_probability(self, prompt: str, continuation: str) -> float:
        """Return how likely `prompt` is continued by `continuation`.

        Args:
            prompt: beginning of the text.
            continuation: what follows it, without a space that is not its own.

        Returns:
            Natural logarithm of the probability of all its tokens, in nats; at most 0.

        Raises:
            SpecError: the continuation is empty, or both together have more tokens than the model
                reads.
            ModelError: the model is behind a gateway.

        Examples:
            >>> model.log_probability("The patient has a", " cough") < 0
            True
        """
        return self._local_model("log_probability").log_probability(prompt, continuation)

    def extract(
        self,
        secret: str,
        *,
        prefix: str = "",
        telltale: str | None = None,
        output: str | Path | None = None,
        **fields: Unpack[ExtractFields],
    ) -> Extraction:
        """Does the model tell a secret, and would the base model have guessed it?

        Both are asked for the secret's probability after `prefix`, for its rank and exposure among
        the alternatives (Carlini et al. 2019), for their likeliest continuation and for samples.
        That is post-processing of the released model: it costs nothing, and the result carries the
        model's guarantee. Secret and prefix go into no file, message or result.

        Args:
            secret: what follows `prefix`; a space between them counts as the secret's.
            prefix: what stands before it, as in the notes.
            telltale: words that give the secret away wherever they are written; by default the
                whole secret.
            output: JSON file to make.
            fields: the fields of `taciturn.spec.ExtractSpec`: `template` and `alternatives` say
                what else the secret could have been.

        Returns:
            For base and fitted model, the secret's log-probability in nats, its rank, its exposure
            in bits, and the share of samples that tell it, with a confidence interval.

        Raises:
            SpecError: the secret is not among the alternatives, or other bad input.

        Examples:
            >>> extraction = model.extract(
            ...     " yellow", prefix="The code is", alternatives=(" yellow", " green"), samples=2
            ... )
            >>> extraction.fitted.log_probability < 0
            True
        """
        return self._local_model("extract").extract(
            secret, prefix=prefix, telltale=telltale, output=output, **fields
        )

    def membership(
        self,
        members: object,
        non_members: object,
        *,
        output: str | None = None,
        **fields: Unpack[MembershipFields],
    ) -> Membership:
        """Can the model tell who was in its training data? For the data's owner.

        Scores each privacy unit by loss, Min-K%++ and the ratio to the base model, and says how
        well the scores separate members from non-members, beside what the guarantee allows. The
        figures are exact and private: `show_private=True` is needed, and they must not be passed
        on.

        Args:
            members: units that the model was trained on; whatever `fit` takes.
            non_members: units like them that it was not trained on.
            output: name of a JSON file to make in the private folder of the model's own folder.
            fields: the fields of `taciturn.spec.MembershipSpec`. `privacy_unit` and
                `max_records_per_unit` are by default the model's.

        Returns:
            For each attack, on the fitted model and on the base as a control, the area under the
            curve and the share of members found at small shares of false alarms; `scores` has a row
            per unit.

        Raises:
            SpecError, DataError: bad input, or `show_private` is not set.

        Examples:
            >>> membership = model.membership(
            ...     "notes.csv", "public.csv", text_field="text", show_private=True
            ... )
            >>> membership.n_members
            20
        """
        return self._local_model("membership").membership(
            members, non_members, output=output, **fields
        )

    def certificate(
        self, *, signing_key: str | None = None, audit: CertifiedAudit | None = None
    ) -> Statement:
        """Return what is certified of this model, signed into `certificate.json` of its folder.

        Args:
            signing_key: a PEM file, `env:NAME` or `command:PROGRAM` (taciturn.certificate.signers);
                by default what the environment variable TACITURN_SIGNING_KEY names. Without any,
                the certificate that is there is read, unchecked.
            audit: what an audit of the model found.

        Returns:
            The statement of model, data, steps, epsilon, delta and digests of the files.

        Raises:
            CertificateError: no guarantee, no folder, or no certificate and no key to sign one.
            SigningKeyError: the key cannot be used.

        Examples:
            >>> fitted = taciturn.LLM("fitted")
            >>> folder = fitted.save("to-certify")
            >>> statement = fitted.certificate(signing_key="key.pem")
            >>> type(statement).__name__
            'Statement'
        """
        if self._remote is not None:
            check_local({"signing_key": signing_key, "audit": audit}, "signing_key", "audit")
            return self._remote_model().certificate()
        return self._local_model("certificate").certificate(signing_key=signing_key, audit=audit)

    def save(
        self, folder: str | Path, *, merged: bool = False, signing_key: str | None = None
    ) -> Path:
        """Write adapter, config, tokenizer, model card and privacy report; nothing private.

        With `merged`, one whole model in fp32 takes the place of adapter and base, for a server
        that knows no adapters; its logits are compared with the fitted model's before anything is
        written. PEFT's own merge_and_unload changes the embedding too, where it is tied to an
        output layer that was fitted.

        With a signing key (see `certificate`) it also writes `certificate.json`. Of several
        processes that torchrun started, the first writes. A gateway's model is downloaded as it is;
        `LLM(folder)` is then a model that is here.

        Args:
            folder: a new or empty folder.
            merged: write one whole model in place of adapter and base.
            signing_key: as in `certificate`.

        Returns:
            The folder.

        Raises:
            AdapterError: nothing was fitted, the folder holds a model already, or the merged model
                gives other logits.
            OutputError: the folder cannot be written.

        Examples:
            >>> folder = model.save("saved")
            >>> (folder / "privacy_report.json").is_file()
            True
            >>> taciturn.LLM("saved").policy == model.policy
            True
        """
        if self._remote is not None:
            check_local({"signing_key": signing_key, "merged": merged}, "signing_key", "merged")
            return self._remote_model().download(folder)
        return self._local_model("save").save(folder, merged=merged, signing_key=signing_key)

    def export(
        self,
        folder: str | Path,
        *,
        form: Literal["merged", "gguf", "ollama"] = "merged",
        weights: Literal["f32", "f16", "q8_0"] = "f16",
        signing_key: str | None = None,
    ) -> Path:
        """Write the fitted model in a form that others serve, into a new folder.

        What was written is read back, and its logits are compared with the fitted model's before
        the folder is there. It costs nothing, and carries the guarantee and the digest of the
        certificate; `derivation.json` says what was made of what, for `taciturn cert verify`.

        Args:
            folder: is made; all of it is there at the end, or nothing.
            form: "merged": one model in fp32, as transformers, vLLM and TGI load it without PEFT.
                "gguf": one file, for llama.cpp. "ollama": the same with a Modelfile.
            weights: of the GGUF file.
            signing_key: as in `certificate`; signs the statement of what was made of what.

        Returns:
            The folder.

        Raises:
            ModelError: the form has no place for this architecture or tokenizer, or the base is
                quantised.
            AdapterError: what was written gives other logits.
            CertificateError: a key to sign with, and no certificate that could be named.
            OutputError: the folder is there already, or cannot be written.
            MissingDependencyError: a GGUF file needs taciturn[gguf].

        Examples:
            >>> folder = model.export("merged", form="merged")
            >>> (folder / "derivation.json").is_file()
            True
        """
        return self._local_model("export").export(
            folder, form=form, weights=weights, signing_key=signing_key
        )

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = True,
        message: str | None = None,
        without_guarantee: bool = False,
        token: str | None = None,
    ) -> str:
        """Send the released files to the Hugging Face hub, in one commit; returns their address.

        Of the model's folder, files that a fit or an export releases go up, by their names, and
        nothing else: never its private folder. `LLM("organisation/name")` loads it back.

        Args:
            repository: "organisation/name"; made if it is not there.
            private: a repository that is made can be seen by its owner alone.
            message: of the commit.
            without_guarantee: send a model that was fitted with target_epsilon="unlimited", too.
            token: by default that of `hf auth login`, or HF_TOKEN.

        Returns:
            The address of what was sent.

        Raises:
            GuaranteeError: the model promises nothing.
            CertificateError: its files are not those that were certified.
            OutputError: the hub refused, or did not answer; no half of the model is there.

        Examples:
            >>> address = model.push_to_hub("hospital/notes", message="fitted with epsilon 3")
            >>> address.endswith("hospital/notes")
            True
        """
        return self._local_model("push_to_hub").push_to_hub(
            repository,
            private=private,
            message=message,
            without_guarantee=without_guarantee,
            token=token,
        )

    def download(self, folder: str | Path) -> Path:
        """The same as `save`.

        Args:
            folder: a new or empty folder.

        Returns:
            The folder.

        Raises:
            As `save`.

        Examples:
            >>> folder = model.download("downloaded")
            >>> folder.is_dir()
            True
        """
        return self.save(folder)

    def _fit_remotely(
        self, data: RemoteDataset, options: dict[str, Any], *, wait: bool
    ) -> LLM | Job:
        own = self._report if self._local is None else self._local.privacy
        if self._remote is not None or own is not None:
            raise ModelError(
                f"{self.name} is already in use; make a new LLM(...) of the base model, by the "
                "name that the gateway knows it by"
            )
        job = data.fit(self.name, **self._with_performance(options))
        self._remote = job
        if not wait:
            return job
        try:
            job.wait()
        except Exception:
            if job.view.state.over:
                self._remote = None
            raise
        return self

    def _model(self, method: str) -> LocalModel | RemoteModel:
        return self._local_model(method) if self._remote is None else self._remote_model()

    def _remote_model(self) -> RemoteModel:
        """Return the gateway's model; waits for the job that makes it."""
        assert self._remote is not None
        if isinstance(self._remote, Job):
            self._remote = self._remote.fitted()
        return self._remote

    def _local_model(self, method: str) -> LocalModel:
        """Return the model in this process; raises for a gateway's, or without the engine."""
        if self._remote is not None:
            raise ModelError(
                f"{method} works on models that are here and {self.name} is behind a gateway; "
                "download it: model.save(folder), then LLM(folder)"
            )
        if self._local is None:
            try:
                with nothing_collected():
                    from taciturn.local.model import LocalModel
            except ModuleNotFoundError as error:
                raise MissingDependencyError(
                    f"{method} on this machine needs {error.name}; install taciturn[engine]"
                ) from None
            self._look_on_hub()
            place = self.name if self._on_hub is None else str(self._on_hub)
            self._local = LocalModel(place, self._performance, self._base_at)
        return self._local

    def _look_on_hub(self) -> None:
        """Fetch a fitted model from the hub, if that is what the name is of; asked once."""
        if self._is_settled:
            return
        self._is_settled = True
        try:
            with nothing_collected():
                from taciturn.local.export.model_hub import fetched
        except ModuleNotFoundError:
            return  # without the engine nothing is loaded, from wherever
        self._on_hub = fetched(self.name)
        if self._on_hub is not None:
            self._report = read_report(self._on_hub / REPORT)

    def _with_performance(self, fields: dict[str, Any]) -> dict[str, Any]:
        own = self._performance.model_dump(include={"device", "dtype", "quantization"})
        return {name: value for name, value in own.items() if value is not None} | fields
