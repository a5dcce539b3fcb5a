"""DPTrainer: what people give to the Trainer of transformers, or to TRL's, run by our engine.

Nothing of those trainers runs: arguments are mapped, ignored because harmless, or refused by name
(`fields.py`). What it returns, logs and saves is public, or was paid for.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import TrainOutput

from taciturn.data.tokens.tokenize import prepare
from taciturn.engine.evaluation.likelihood import likelihood
from taciturn.engine.training.torchrun import is_first_process
from taciturn.errors import SpecError
from taciturn.hf.log import TrainerLog, split_callbacks
from taciturn.hf.models import adapter_of, loaded_base
from taciturn.hf.privacy import PrivacyArguments
from taciturn.hf.records import Records, check_collator, records
from taciturn.hf.settings import settings_of, with_adapter
from taciturn.local.events import Callback
from taciturn.local.fit import Observer
from taciturn.local.model import LocalModel
from taciturn.planning.plan import max_tokens
from taciturn.reports.privacy import PrivacyReport
from taciturn.spec import DataSpec, PerformanceSpec

_log = logging.getLogger("taciturn.hf")

_REFUSED = {
    "model_init": "give the model itself; weights that are begun anew have no name",
    "compute_loss_func": "the loss is each record's own cross-entropy, or clipping bounds nothing",
    "compute_metrics": "a metric of private rows is not bounded; evaluate() releases figures",
    "preprocess_logits_for_metrics": "logits of private rows are private; use evaluate()",
    "optimizer_cls_and_kwargs": "noised gradients go through AdamW; set its rate and betas in args",
    "formatting_func": "it would run on private rows; make the column of text beforehand",
}


class DPTrainer:
    """Trainer of transformers' interface for fits with differential privacy.

    Examples:
        >>> trainer.privacy_arguments.target_epsilon
        3
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Any = None,
        compute_loss_func: Any = None,
        compute_metrics: Any = None,
        callbacks: Sequence[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: Any = None,
        preprocess_logits_for_metrics: Any = None,
        peft_config: Any = None,
        formatting_func: Any = None,
        *,
        privacy: PrivacyArguments,
    ) -> None:
        """Check all of it; no row is read.

        Args:
            model: name or folder, a model of transformers as its files hold it, or a PeftModel
                that was not trained.
            args: TrainingArguments or TRL's SFTConfig.
            data_collator: one that only pads; see `records.COLLATORS`.
            train_dataset: rows, as `LLM.fit` takes them, of text, messages, prompt and completion,
                or input_ids and labels; no name of a file.
            eval_dataset: what `evaluate` judges; public, or charged, as `privacy` says.
            processing_class: the tokenizer.
            callbacks: TrainerCallbacks, or functions of our events.
            peft_config: a plain LoraConfig.
            model_init, compute_loss_func, compute_metrics, formatting_func: refused; it says why.
            preprocess_logits_for_metrics, optimizers, optimizer_cls_and_kwargs: refused, too.
            privacy: the promise.

        Raises:
            SpecError: an option cannot be honoured; says which, why, and what to do.
            ModelError: the model cannot be used.

        Examples:
            >>> promise = PrivacyArguments(target_epsilon=3, unit="patient_id")
            >>> DPTrainer(model=base, train_dataset=rows, model_init=print, privacy=promise)
            Traceback (most recent call last):
            taciturn.errors.SpecError: model_init cannot be honoured: ...
        """
        if not isinstance(privacy, PrivacyArguments):
            raise SpecError(
                f"privacy is {type(privacy).__name__}; give "
                "PrivacyArguments(target_epsilon=3, unit=...)"
            )
        options = locals()
        for name, reason in _REFUSED.items():
            if options[name] is not None:
                raise SpecError(f"{name} cannot be honoured: {reason}; leave it out")
        if tuple(optimizers) != (None, None):
            raise SpecError(
                "optimizers cannot be honoured: noised gradients go through AdamW, and a schedule "
                "must not follow private losses; set rate, betas and lr_scheduler_type in args"
            )
        if model is None:
            raise SpecError("model is missing; give a name, a folder, or a model")
        self.args = args or TrainingArguments(output_dir="trainer_output")
        self.privacy_arguments = privacy
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.data_collator = data_collator
        check_collator(data_collator)
        self._settings = settings_of(self.args, privacy)
        self._callbacks, self._functions = split_callbacks(callbacks or ())
        bar = PrinterCallback if self.args.disable_tqdm else ProgressCallback
        self._callbacks.insert(0, bar())
        performance = PerformanceSpec(device=self._settings.device, dtype=self._settings.dtype)
        base, adapter = loaded_base(model, processing_class, performance)
        if peft_config is not None:
            adapter = adapter_of(peft_config)
        self._fields = with_adapter(self._settings.fields, adapter)
        self._base, self._local = base, LocalModel.of(base)
        self.model: Any = base.model
        self.processing_class = base.tokenizer
        self._log = TrainerLog(self.args, self._settings, self._callbacks)

    def __init_subclass__(cls) -> None:
        """Refuse what a subclass would change in vain, or to nobody's protection."""
        for name in vars(cls):
            if hasattr(Trainer, name) and not hasattr(DPTrainer, name):
                raise SpecError(
                    f"{cls.__name__} overrides {name}, which is not called: the engine owns the "
                    "step, from sampling to noise; leave it out"
                )

    @property
    def state(self) -> TrainerState:
        """State with public values alone: steps, log_history.

        Examples:
            >>> trainer.state.global_step
            3
        """
        return self._log.state

    @property
    def privacy(self) -> PrivacyReport | None:
        """The guarantee of the model; None before `train`.

        Examples:
            >>> trainer.privacy.epsilon <= 3
            True
        """
        return self._local.privacy

    def add_callback(self, callback: Any) -> None:
        """Add one; see the constructor.

        Args:
            callback: a TrainerCallback, or a function of our events.

        Raises:
            SpecError: it is neither.

        Examples:
            >>> events = []
            >>> trainer.add_callback(events.append)
        """
        trainer_callbacks, functions = split_callbacks([callback])
        self._callbacks += trainer_callbacks
        self._functions += functions

    def train(self, resume_from_checkpoint: bool | str | None = None) -> TrainOutput:
        """Fit, and release the model into `args.output_dir`.

        Args:
            resume_from_checkpoint: True, or the output folder: go on with the interrupted run.

        Returns:
            Steps and metrics; the training loss is private, and not a number here.

        Raises:
            TaciturnError: as `LLM.fit` raises it.

        Examples:
            >>> args = TrainingArguments(output_dir="again", max_steps=2)
            >>> again = DPTrainer(base, args, train_dataset=rows, privacy=trainer.privacy_arguments)
            >>> again.train().metrics["train_steps"]
            {...'step': 2}
            2
        """
        if self.train_dataset is None:
            raise SpecError("train_dataset is missing; give the rows to fit")
        settings = self._settings
        own = self._records(self.train_dataset)
        self._announce(settings.notes)
        callbacks: list[Callback] = [self._log, *self._functions]
        with self._judging():
            self._local.fit(
                own.data,
                output=settings.output,
                resume=self._resumes(resume_from_checkpoint),
                observer=Observer(on_plan=self._log.take_plan),
                callbacks=callbacks,
                optimizer=settings.optimizer,
                **self._data_fields(),
                **{**self._fields, **own.fields},
            )
        self.model = self._local.fitted
        report = self._local.privacy
        assert report is not None
        metrics: dict[str, Any] = {"train_steps": report.steps}
        if report.epsilon is not None:
            metrics |= {"epsilon": report.epsilon, "delta": report.delta}
        return TrainOutput(report.steps, float("nan"), metrics)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Judge the model: exactly on data declared public, or with noise that is paid for.

        The cost of private data is added to the model's guarantee before a figure is returned. Of
        several processes the first alone does that; the others get nothing.

        Args:
            eval_dataset: in place of the constructor's; of several by name, all are judged.
            ignore_keys: is not looked at.
            metric_key_prefix: what the names of figures begin with.

        Raises:
            SpecError: nobody has said whether the data are public.

        Examples:
            >>> figures = trainer.evaluate()
            >>> figures["eval_loss"] > 0
            True
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise SpecError("eval_dataset is missing; give the rows to judge the model on")
        if isinstance(dataset, Mapping) and not hasattr(dataset, "column_names"):
            figures: dict[str, float] = {}
            for name, part in dataset.items():
                figures |= self.evaluate(part, metric_key_prefix=f"{metric_key_prefix}_{name}")
            return figures
        privacy = self.privacy_arguments
        if not privacy.eval_is_public and privacy.eval_epsilon is None:
            raise SpecError(
                "an evaluation on private rows has to be paid for: give "
                "PrivacyArguments(eval_epsilon=...), or say eval_is_public=True of public data"
            )
        if not privacy.eval_is_public and not is_first_process():
            return {}
        own = self._records(dataset)
        charge: dict[str, Any] = {
            "target_epsilon": privacy.eval_epsilon,
            "delta": privacy.eval_delta,
            "privacy_unit": privacy.unit,
            "max_records_per_unit": privacy.max_records_per_unit,
            "ledger": privacy.ledger,
            "ledger_namespace": privacy.ledger_namespace,
            "signing_key": privacy.signing_key,
        }
        charged = {} if privacy.eval_is_public else charge
        fields: dict[str, Any] = {
            name: value for name, value in charged.items() if value is not None
        }
        result = self._local.evaluate(
            own.data,
            callbacks=self._functions,
            report_to=self._settings.fields.get("report_to", ()),
            **self._data_fields(),
            **fields,
            **own.fields,
        )
        best = result.base if result.fitted is None else result.fitted
        values = {
            "loss": float(best.nats_per_token),
            "token_accuracy": float(best.token_accuracy),
            "base_loss": float(result.base.nats_per_token),
        }
        if result.epsilon is not None and result.delta is not None:
            values |= {"epsilon": result.epsilon, "delta": result.delta}
        figures = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self._log.log(figures)
        return figures

    def save_model(self, output_dir: str | None = None) -> None:
        """Write adapter, tokenizer, card and report; `args.output_dir` has them already.

        Args:
            output_dir: another folder.

        Raises:
            OutputError: it cannot be written, or holds something else.

        Examples:
            >>> trainer.save_model("adapter")
        """
        folder = self._settings.output if output_dir is None else Path(output_dir).expanduser()
        if (
            self._local.privacy is not None
            and folder.absolute() == self._settings.output.absolute()
        ):
            return
        self._local.save(folder, signing_key=self.privacy_arguments.signing_key)

    def predict(self, *_: Any, **__: Any) -> None:
        """Refuse: predictions for private rows are private, one by one.

        Examples:
            >>> trainer.predict(rows)
            Traceback (most recent call last):
            taciturn.errors.SpecError: predictions for rows tell of these rows, ...
        """
        raise SpecError(
            "predictions for rows tell of these rows, and no noise pays for each of them; judge "
            "the model with evaluate(), or write with taciturn.LLM(output_dir).sample(prompts)"
        )

    def push_to_hub(self, *_: Any, **__: Any) -> None:
        """Refuse: the output folder has a private part beside it.

        Examples:
            >>> trainer.push_to_hub()
            Traceback (most recent call last):
            taciturn.errors.SpecError: push_to_hub uploads whole folders, ...
        """
        raise SpecError(
            "push_to_hub uploads whole folders, and output_dir holds private/; call "
            "save_model(FOLDER), which has nothing private, and upload that"
        )

    def is_world_process_zero(self) -> bool:
        """True in the process that writes and prints.

        Examples:
            >>> trainer.is_world_process_zero()
            True
        """
        return is_first_process()

    def _records(self, dataset: Any) -> Records:
        text = str(getattr(self.args, "dataset_text_field", "text"))
        return records(dataset, self.data_collator, self.privacy_arguments, text)

    def _data_fields(self) -> dict[str, Any]:
        """Return the tokens that are kept, where they are not the default."""
        limit = self.privacy_arguments.max_tokens
        longest = getattr(self.args, "max_length", None)
        self._fields.pop("max_tokens", None)
        if limit is None and longest is not None:
            limit = min(longest, self._base.context_length)
        return {} if limit is None else {"max_tokens": limit}

    def _resumes(self, resume_from_checkpoint: bool | str | None) -> bool:
        where = resume_from_checkpoint
        if where is None:
            where = self.args.resume_from_checkpoint
        if where is None or isinstance(where, bool):
            return bool(where)
        if not Path(where).absolute().is_relative_to(self._settings.output.absolute()):
            raise SpecError(
                f"resume_from_checkpoint={where} is not in output_dir={self._settings.output}; a "
                "run goes on in its own folder: give that one, and True"
            )
        return True

    def _announce(self, notes: Sequence[str]) -> None:
        for note in notes if is_first_process() else ():
            _log.warning(note)

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """Judge public data while training, in the first process, if the arguments say so."""
        asks = self._settings.evaluating.every is not None or self.args.eval_on_start
        if not asks or self.eval_dataset is None or not is_first_process():
            if asks and self.eval_dataset is None:
                raise SpecError("eval_strategy needs eval_dataset; give it, or leave it out")
            yield
            return
        if not self.privacy_arguments.eval_is_public:
            raise SpecError(
                "eval_on_start=True judges data while training, which must be public; say "
                "PrivacyArguments(eval_is_public=True), or leave it out"
            )
        own, base = self._records(self.eval_dataset), self._base
        spec = DataSpec(**self._data_fields(), **own.fields)
        limit = max_tokens(spec, base.context_length)
        with tempfile.TemporaryDirectory() as folder:
            tokenized = prepare(
                own.data,
                spec,
                base.tokenizer,
                limit,
                Path(folder) / "data",
                seed=0,
                vocabulary=base.vocabulary,
            )

            def judge() -> dict[str, float]:
                result = likelihood(base.model, tokenized, limit)
                return {
                    "eval_loss": result.nats_per_token,
                    "eval_token_accuracy": result.token_accuracy,
                }

            self._log.judge = judge
            try:
                yield
            finally:
                self._log.judge = None
