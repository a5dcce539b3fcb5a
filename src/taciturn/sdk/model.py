"""A model that was fitted behind a gateway, and is used there or downloaded."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

from taciturn.errors import (
    AdapterError,
    CertificateError,
    DataError,
    MissingDependencyError,
    OutputError,
    SpecError,
)
from taciturn.notebook.cards import card, facts
from taciturn.planning.release import EvaluationPlan
from taciturn.reports.privacy import CERTIFICATE, Audit, PrivacyReport
from taciturn.sdk.dataset import RemoteDataset
from taciturn.sdk.job import Job, Reader
from taciturn.sdk.requests import body_of, public_texts, request
from taciturn.sdk.stream import messages
from taciturn.sdk.transport import Transport, new_key
from taciturn.spec import EvaluateFields, SampleFields, SampleSpec, SynthesisFields
from taciturn.wire.jobs import (
    JobView,
    ModelView,
    PlanView,
    RemoteAudit,
    RemoteEvaluate,
    RemoteSample,
    RemoteSynthesize,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

    from taciturn.certificate.statement import Statement
    from taciturn.notebook.frame import PolicyFrame
    from taciturn.sdk.evaluation import RemoteEvaluation


class RemoteModel:
    """A fitted model; what it writes is written where it is.

    Raises:
        GatewayError: any request can raise it, as of `taciturn.Client`.

    Examples:
        >>> remote = client.model("mod_00000000000000000001")
        >>> frame = remote.sample(["The patient"])
    """

    def __init__(self, transport: Transport, view: ModelView, reader: Reader) -> None:
        self.view = view
        self._transport = transport
        self._reader = reader

    @property
    def id(self) -> str:
        """Name by which `client.model(id)` and `LLM("gateway:ID")` find it again.

        Examples:
            >>> remote.id
            'mod_00000000000000000001'
        """
        return self.view.id

    @property
    def privacy(self) -> PrivacyReport:
        """The guarantee it carries, asked anew: private evaluations add to it.

        Examples:
            >>> remote.privacy.epsilon
            3.0
        """
        self.view = self._transport.get(f"models/{self.id}", ModelView)
        return PrivacyReport.model_validate(self.view.report)

    @property
    def policy(self) -> str:
        """The guarantee in one line.

        Examples:
            >>> remote.policy
            'DP (epsilon=3, delta=1e-06, unit=patient_id)'
        """
        return self.view.policy.text

    def sample(
        self,
        prompts: Sequence[str],
        *,
        progress: bool | None = None,
        **fields: Unpack[SampleFields],
    ) -> PolicyFrame:
        """Continue each prompt; see LLM.sample.

        Args:
            prompts: beginnings of texts.
            progress: as of `Job.wait`.
            fields: the fields of `taciturn.spec.SampleSpec`.

        Returns:
            A frame with columns prompt, text and policy.

        Examples:
            >>> frame = remote.sample(["The patient"])
            >>> frame["text"][0]
            ' coughs'
        """
        job = self._submit(RemoteSample, prompts=tuple(prompts), **fields)
        return cast("PolicyFrame", job.result(progress=progress))

    def stream(self, prompt: str, spec: SampleSpec) -> Iterator[str]:
        """Yield one continuation in pieces, through the gateway's OpenAI-compatible endpoint.

        Args:
            prompt: beginning of the text.
            spec: how it goes on; `n` is not looked at.

        Examples:
            >>> from taciturn.spec import SampleSpec
            >>> list(remote.stream("The patient", SampleSpec(max_new_tokens=5)))
            [' co', 'ughs']
        """
        body = {
            "model": self.id,
            "prompt": prompt,
            "stream": True,
            "max_tokens": spec.max_new_tokens,
            **spec.model_dump(include={"temperature", "top_p", "seed"}, exclude_none=True),
        }
        with self._transport.stream("POST", "completions", body=body) as response:
            for message in messages(response.iter_lines()):
                if message.data == "[DONE]":
                    return
                for choice in json.loads(message.data).get("choices", ()):
                    yield choice.get("text", "")

    def evaluate(
        self,
        data: object,
        *,
        progress: bool | None = None,
        purpose: str | None = None,
        **fields: Unpack[EvaluateFields],
    ) -> RemoteEvaluation:
        """Judge how well base and fitted model predict `data`; see LLM.evaluate.

        Args:
            data: a dataset of the gateway, with target_epsilon; or public texts: a list of strings,
                a frame or a file with `text_field`.
            purpose: one line for whoever has to approve it, where that is needed.
            progress: as of `Job.wait`.
            fields: the fields of `taciturn.spec.EvaluateSpec`.

        Examples:
            >>> remote.evaluate(["A public sentence.", "Another one."]).basis
            'public'
        """
        job = self._submit(RemoteEvaluate, purpose=purpose, **_evaluation(data, fields))
        return cast("RemoteEvaluation", job.result(progress=progress))

    def plan_evaluation(
        self, data: RemoteDataset, **fields: Unpack[EvaluateFields]
    ) -> EvaluationPlan:
        """Return what `evaluate` would cost, and how exactly it would tell; spends nothing.

        Args:
            data: a gateway's dataset.
            fields: the fields of `taciturn.spec.EvaluateSpec`; `target_epsilon` is needed.

        Raises:
            SpecError: `target_epsilon` is not there.

        Examples:
            >>> plan = remote.plan_evaluation(data, target_epsilon=0.5)
            >>> plan.gain_std > 0
            True
        """
        if fields.get("target_epsilon") is None:
            raise SpecError("an evaluation of public text is free and exact; give target_epsilon")
        body = body_of(request(RemoteEvaluate, model=self.id, **_evaluation(data, fields)))
        plan = self._transport.read(PlanView, self._transport.send("POST", "plans", body=body)).plan
        names = [field.name for field in dataclasses.fields(EvaluationPlan)]
        return EvaluationPlan(**{name: plan[name] for name in names if name in plan})

    def audit(self, *, confidence: float = 0.95, progress: bool | None = None) -> Audit:
        """Attack the model: a lower bound on epsilon; see LLM.audit.

        Args:
            confidence: with which the bound holds; at least 0.5.
            progress: as of `Job.wait`.

        Examples:
            >>> remote.audit().refuted
            False
        """
        job = self._submit(RemoteAudit, confidence=confidence)
        return cast("Audit", job.result(progress=progress))

    def synthesize(
        self,
        n: int,
        *,
        output: str | Path | None = None,
        prompts: Sequence[str] | Mapping[str, str] = ("",),
        progress: bool | None = None,
        **fields: Unpack[SynthesisFields],
    ) -> PolicyFrame:
        """Write `n` records; see LLM.synthesize. `batch_size` is the worker's own business.

        Args:
            n: records to write, at least 1.
            output: Parquet file to make.
            prompts: how records begin, in turn.
            progress: as of `Job.wait`.
            fields: the fields of `taciturn.spec.SynthesisSpec`.

        Raises:
            SpecError: prompts with labels, which are for models that are here.
            OutputError: `output` is there already, or does not end in .parquet.

        Examples:
            >>> frame = remote.synthesize(2, output="remote.parquet")
        """
        if isinstance(prompts, Mapping):
            raise SpecError("labels are for models that are here; give a list of prompts")
        path = None if output is None else _new_file(Path(output).expanduser())
        job = self.start_synthesis(n, prompts=prompts, **fields).wait(progress=progress)
        with tempfile.TemporaryDirectory() as folder:
            file = job.download("synthetic.parquet", folder)
            if path is not None:
                shutil.copyfile(file, path)
            return self._table(file, path)

    def start_synthesis(
        self, n: int, *, prompts: Sequence[str] = ("",), **fields: Unpack[SynthesisFields]
    ) -> Job:
        """Start to write `n` records; the handle of the job that does.

        Args:
            n: records to write, at least 1.
            prompts: how records begin, in turn.
            fields: the fields of `taciturn.spec.SynthesisSpec`.

        Examples:
            >>> job = remote.start_synthesis(2)
            >>> job.view.kind.value
            'synthesize'
        """
        fields.pop("batch_size", None)
        return self._submit(RemoteSynthesize, n=n, prompts=tuple(prompts), **fields)

    def certificate(self) -> Statement:
        """Return what is certified of it; `taciturn cert verify` checks it, once downloaded.

        Raises:
            CertificateError: there is none.
            MissingDependencyError: it cannot be read without taciturn[verify].

        Examples:
            >>> try:
            ...     statement = remote.certificate()
            ... except taciturn.CertificateError:
            ...     print("its gateway has no signing key")
            its gateway has no signing key
        """
        try:
            from taciturn.certificate.envelope import Envelope
            from taciturn.certificate.statement import Statement
        except ImportError as error:
            raise MissingDependencyError(
                f"reading a certificate needs {error.name}; install taciturn[verify]"
            ) from None
        if CERTIFICATE not in self.view.files:
            raise CertificateError(
                f"{self.id} has no certificate: {self.policy}"
                if self.view.policy.kind == "no guarantee"
                else f"{self.id} has no certificate; its gateway signs none (TACITURN_SIGNING_KEY)"
            )
        response = self._transport.send("GET", f"models/{self.id}/files/{CERTIFICATE}")
        return Statement.from_bytes(Envelope.from_bytes(response.content).payload)

    def download(self, folder: str | Path) -> Path:
        """Write its files into a new or empty folder, all or none; `LLM(folder)` uses them here.

        Args:
            folder: a new or empty folder.

        Raises:
            AdapterError: the folder is not empty.
            OutputError: it cannot be written.

        Examples:
            >>> folder = remote.download("from-the-gateway")
            >>> sorted(path.name for path in folder.iterdir())
            ['README.md', 'privacy_report.json']
        """
        output = Path(folder).expanduser()
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise AdapterError(f"{output} is not an empty folder; choose another one")
        view = self._transport.get(f"models/{self.id}", ModelView)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=output.parent, prefix=".taciturn-") as partial:
                for name in view.files:
                    if Path(name).name != name:
                        raise AdapterError(f"file name {name!r} leads into another folder")
                    self._transport.download(f"models/{self.id}/files/{name}", Path(partial) / name)
                output.mkdir(exist_ok=True)
                for name in view.files:
                    (Path(partial) / name).replace(output / name)
        except OSError as error:
            raise OutputError(f"{output} cannot be written: {error.strerror}") from None
        return output

    save = download

    def remove(self) -> None:
        """Remove the model and its files; what it cost stays spent.

        Examples:
            >>> remote.remove()
        """
        self._transport.send("DELETE", f"models/{self.id}")

    def _submit(self, kind: type[BaseModel], **fields: Any) -> Job:
        body = body_of(request(kind, model=self.id, **fields))
        response = self._transport.send("POST", "jobs", body=body, key=new_key())
        return Job(self._transport, self._transport.read(JobView, response), self._reader)

    def _table(self, file: Path, path: Path | None) -> PolicyFrame:
        from taciturn.notebook.frame import with_policy
        from taciturn.sdk.requests import read_table

        try:
            return with_policy(read_table(file), self.policy)
        except (ImportError, DataError):
            if path is None:
                raise
            # The file is what was asked for; that it cannot be shown here loses nothing.
            return with_policy([], self.policy)

    def __repr__(self) -> str:
        return f"<RemoteModel {self.id}: {self.view.base_model}; {self.policy}>"

    def _repr_html_(self) -> str:
        view = self.view
        rows = {
            "base model": view.base_model,
            "namespace": view.namespace,
            "fitted by": view.owner,
            "job": view.job,
            "files": ", ".join(view.files),
        }
        return card(view.name or view.id, self.policy, facts(rows))


def _evaluation(data: object, fields: EvaluateFields) -> dict[str, Any]:
    """Return the fields of a RemoteEvaluate on a gateway's dataset or on public texts."""
    options: dict[str, Any] = dict(fields)
    if isinstance(data, RemoteDataset):
        return {"data": data.ref, **options}
    if options.get("target_epsilon") is not None:
        raise SpecError("private data of your own stay here; give a gateway's dataset")
    return {"public_texts": public_texts(data, options.pop("text_field", None)), **options}


def _new_file(path: Path) -> Path:
    if path.suffix != ".parquet" or path.exists() or not path.parent.is_dir():
        raise OutputError(
            f"output {path} must be a new file that ends in .parquet, in a folder that is there"
        )
    return path
