"""A model hub: released files go up in one commit, and come back as a folder.

What goes up is a list of names of released files, looked up one by one. The folder itself is never
walked: no private subfolder, and nothing that anybody put beside a model, is on that list.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_hf_file_metadata,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from taciturn.certificate.derivation import certificate_digest, unverified_derivation
from taciturn.certificate.envelope import Envelope
from taciturn.certificate.files import check_files
from taciturn.certificate.statement import Statement
from taciturn.certificate.verify import read_certificate
from taciturn.errors import GuaranteeError, ModelNotFoundError, OutputError, SpecError
from taciturn.reports.card import front_matter
from taciturn.reports.figures import ReleasedFigures
from taciturn.reports.privacy import (
    AUDIT,
    CARD,
    CERTIFICATE,
    DERIVATION,
    FIGURES,
    PAGE,
    REPORT,
    PrivacyReport,
)
from taciturn.spec import PushSpec

_WORDS = (REPORT, CARD, PAGE, FIGURES, AUDIT, CERTIFICATE, DERIVATION)
_MODEL = (
    *("adapter_config.json", "adapter_model.safetensors", "config.json", "generation_config.json"),
    *("model.safetensors", "model.safetensors.index.json", "Modelfile"),
    *("model-f32.gguf", "model-f16.gguf", "model-q8_0.gguf"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"),
)
RELEASED = (*_WORDS, *_MODEL)
"""Names of all files that a fit or an export releases, but for the parts of a large model."""

_PART = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FRONT = re.compile(r"---\n.*?\n---\n", re.DOTALL)


def released_files(folder: Path) -> list[Path]:
    """Return the released files in `folder`, by name.

    Raises:
        GuaranteeError: one of them is a link to a place where private files are.
    """
    numbered = [path.name for path in folder.glob("model-*-of-*.safetensors")]
    names = [*RELEASED, *sorted(name for name in numbered if _PART.fullmatch(name))]
    paths = [folder / name for name in names if (folder / name).is_file()]
    for path in paths:
        if path.is_symlink() and "private" in path.resolve().parts:
            raise GuaranteeError(
                f"{path} leads into a private folder, whose files nobody paid for; nothing was sent"
            )
    return paths


def push(
    folder: Path,
    repository: str,
    report: PrivacyReport,
    figures: ReleasedFigures,
    spec: PushSpec,
    token: str | None,
) -> str:
    """Send the released files of `folder` to a hub, in one commit; returns the address.

    Args:
        report: that of the folder.
        figures: what evaluations released; the hub lists them.
        token: by default that of `hf auth login`, or HF_TOKEN.

    Raises:
        SpecError: this is no name of a repository.
        GuaranteeError: the model promises nothing.
        CertificateError: the files are not those that were certified.
        OutputError: the hub refused, or did not answer.
    """
    _check_repository(repository)
    if report.guarantee == "none" and not spec.without_guarantee:
        raise GuaranteeError(
            'the model was fitted with target_epsilon="unlimited" and may tell any of its training '
            "data; to send it all the same, say without_guarantee=True (--without-guarantee)"
        )
    _check_certified(folder)
    paths = released_files(folder)
    names = {path.name for path in paths}
    card = _card(folder, repository, report, figures)
    contents: list[Any] = [
        io.BytesIO(card.encode()) if path.name == CARD else path for path in paths
    ]
    # The cache of a hub keeps files under links; their contents go up.
    operations: list[Any] = [
        CommitOperationAdd(path.name, os.path.realpath(content) if content is path else content)
        for path, content in zip(paths, contents, strict=True)
    ]
    api = HfApi(token=token)
    try:
        url = api.create_repo(repository, private=spec.private, exist_ok=True)
        earlier_names = api.list_repo_files(repository)
        # What an earlier push released, and this model has not, would be read with it.
        stale = [name for name in earlier_names if _is_released(name) and name not in names]
        operations += [CommitOperationDelete(name) for name in stale]
        api.create_commit(
            repository, operations, commit_message=spec.message or f"taciturn: {report.policy}"
        )
    except Exception as error:  # of the hub, of the network, and of the client that speaks to it
        raise _not_sent(repository, error) from None
    return str(url)


def _card(folder: Path, name: str, report: PrivacyReport, figures: ReleasedFigures) -> str:
    """Return the folder's card with the metadata that a hub reads."""
    certificate, form = None, None
    if (folder / CERTIFICATE).is_file():
        certificate = certificate_digest(read_certificate(folder / CERTIFICATE))
    if (folder / DERIVATION).is_file():
        derivation = unverified_derivation(folder).predicate
        form = f"{derivation.form} {derivation.weights}"
    library = "gguf" if any(folder.glob("*.gguf")) else "transformers"
    library = "peft" if (folder / "adapter_config.json").is_file() else library
    front = front_matter(report, figures, form, certificate, library, name)
    return front + _FRONT.sub("", (folder / CARD).read_text(encoding="utf-8"), count=1)


def fetched(repository: str) -> Path | None:
    """Return the folder of a fitted model on the hub; None where there is no such model.

    A base model has no privacy report. Whether the hub has one is asked once; without a network,
    what it gave before counts.

    Raises:
        ModelNotFoundError: the model's files could not be fetched.
    """
    if not _REPOSITORY.fullmatch(repository):
        return None
    try:
        commit = get_hf_file_metadata(hf_hub_url(repository, REPORT)).commit_hash
    except (EntryNotFoundError, HfHubHTTPError):
        return None  # a base model, or none that this person may see: loading it says which
    except Exception:
        return _cached(repository)
    try:
        patterns = [*RELEASED, "model-*-of-*.safetensors"]
        return Path(snapshot_download(repository, revision=commit, allow_patterns=patterns))
    except Exception as error:
        raise ModelNotFoundError(
            f"{repository} could not be fetched from the hub ({_why(error)}); check the network "
            "and try again"
        ) from None


def _cached(repository: str) -> Path | None:
    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return folder if (folder / REPORT).is_file() else None


def _is_released(name: str) -> bool:
    return name in RELEASED or _PART.fullmatch(name) is not None


def _check_repository(repository: object) -> None:
    try:
        if not isinstance(repository, str):
            raise SpecError(f"repository is {type(repository).__name__}; give a name")
        hf_hub_url(repository, REPORT)  # it checks the name, and asks nobody
    except HFValidationError:
        raise SpecError(
            f"repository {repository!r:.200} is no name of a hub's; give one such as "
            "my-organisation/notes-adapter"
        ) from None


def _check_certified(folder: Path) -> None:
    """Raise CertificateError unless the files are those of the certificate, if there is one."""
    if (folder / DERIVATION).is_file():
        check_files(folder, unverified_derivation(folder).subject, "the exported model")
    elif (folder / CERTIFICATE).is_file():
        envelope = Envelope.from_bytes(read_certificate(folder / CERTIFICATE))
        check_files(folder, Statement.from_bytes(envelope.payload).subject, "the model")


def _not_sent(repository: str, error: Exception) -> OutputError:
    is_hidden = isinstance(error, GatedRepoError | RepositoryNotFoundError)
    status = getattr(getattr(error, "response", None), "status_code", None)
    remedy = (
        "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
        if is_hidden or status in (401, 403)
        else "check the network and HF_ENDPOINT, and try again"
    )
    return OutputError(
        f"{repository} could not be written on the hub ({_why(error)}); {remedy}. Files go up in "
        "one commit, so that no half of them is there"
    )


def _why(error: Exception) -> str:
    """Return a library's message in one line; the hub's own quotes no token."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
