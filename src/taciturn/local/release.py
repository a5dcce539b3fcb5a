"""The folder of a fitted model: the files that may be shared, and beside them what must not.

What depends on rows without the budget having paid for it is in its subfolder `private/`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from taciturn.certificate.commitment import commit, committed
from taciturn.certificate.sign import issue, released_audit
from taciturn.certificate.signers import Signer
from taciturn.engine.model import adapter
from taciturn.engine.model.load import LoadedModel
from taciturn.engine.training.checkpoint import full_disk_is_clear
from taciturn.errors import GuaranteeError, ModelError
from taciturn.reports.card import model_card
from taciturn.reports.figures import ReleasedFigures
from taciturn.reports.html.report import report_page
from taciturn.reports.privacy import (
    AUDIT,
    CARD,
    FIGURES,
    PAGE,
    REPORT,
    Audit,
    PrivacyReport,
    read_report,
)

TRACKING = "tracking"
"""Folder of what trackers write; that of private curves is inside the private one."""
_PRIVATE_NOTICE = (
    "This folder holds values computed from private rows: tokenised text, metrics, checkpoints.\n"
    "No privacy budget paid for them. Do not share it; delete it when you no longer need to resume."
)


def release(
    model: Any,
    base: LoadedModel,
    report: PrivacyReport,
    output: Path,
    signer: Signer | None = None,
    *,
    audit: Audit | None = None,
    sharded: bool = False,
    first: bool = True,
    figures: ReleasedFigures | None = None,
) -> None:
    """Write the shareable files: all of them or none; with a signer, the certificate too.

    Args:
        figures: what evaluations of the model have released.
        audit: what an audit of the model has found.
        sharded: the model is spread over processes, all of which call this.
        first: this is the process that writes a sharded model's weights.
    """
    with _all_at_once(output) as partial:
        if sharded and not hasattr(model, "peft_config"):
            adapter.save_sharded(model, base.tokenizer, partial, first=first)
        else:
            adapter.save(model, base.tokenizer, base.name, partial)
        write_words(partial, report, figures or ReleasedFigures(), audit)
        if signer is not None and report.guarantee != "none":
            issue(partial, signer)


def update_report(
    folder: Path, before: PrivacyReport, after: PrivacyReport, signer: Signer | None
) -> None:
    """Replace report, card and page in a released folder, and sign its certificate anew.

    Raises:
        GuaranteeError: the folder's report is not `before`: another process has spent meanwhile.
    """
    _replace_words(folder, before, after, released_audit(folder))
    if signer is not None and after.guarantee != "none":
        issue(folder, signer)


def add_audit(folder: Path, report: PrivacyReport, audit: Audit, signer: Signer | None) -> None:
    """Put an audit's result into a released folder, its card and, with a signer, its certificate.

    A refuted guarantee gets no certificate: one that was there does not cover the result and is
    refused from now on.

    Raises:
        GuaranteeError: the folder's report is not `report`: another process has spent meanwhile.
    """
    _replace_words(folder, report, report, audit)
    if signer is not None and report.guarantee != "none" and not audit.refuted:
        issue(folder, signer)


def add_figures(folder: Path, figures: ReleasedFigures) -> None:
    """Replace what evaluations have released of the model in `folder`, and its page."""
    report = read_report(folder / REPORT)
    with _all_at_once(folder) as partial:
        _write_figures(partial, report, figures, released_audit(folder))


def released_figures(folder: Path) -> ReleasedFigures:
    """Return what evaluations released of the model in `folder`; raises ModelError if damaged."""
    path = folder / FIGURES
    if not path.is_file():
        return ReleasedFigures()
    try:
        return ReleasedFigures.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise ModelError(
            f"{path} is damaged or truncated; remove it, the model itself does not need it"
        ) from None


def commit_evaluation(private_folders: Sequence[Path], fingerprint: str) -> str:
    """Commit to held-out data; the opening goes to the first private folder that is there."""
    home = next((folder for folder in private_folders if folder.is_dir()), None)
    if home is None:
        return commit(fingerprint, os.urandom(32))
    opening = Path(tempfile.mkdtemp(prefix="evaluation-", dir=home))
    return committed(opening, fingerprint)


def private_folder(folder: Path) -> None:
    """Make a folder for what must not be shared, and say so in it."""
    with full_disk_is_clear(folder.parent):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "README.txt").write_text(_PRIVATE_NOTICE, encoding="utf-8")


def _replace_words(
    folder: Path, before: PrivacyReport, after: PrivacyReport, audit: Audit | None
) -> None:
    if read_report(folder / REPORT) != before:
        raise GuaranteeError(
            f"{folder / REPORT} was changed meanwhile; load the model again and repeat"
        )
    # Backwards: the page is ahead of the report, so that it never says less was spent.
    with _all_at_once(folder, backwards=True) as partial:
        write_words(partial, after, released_figures(folder), audit)


@contextmanager
def _all_at_once(folder: Path, *, backwards: bool = False) -> Iterator[Path]:
    """Yield a folder whose files then replace those of `folder`, if nothing fails."""
    partial = folder / f".partial-{os.getpid()}"
    with full_disk_is_clear(folder):
        try:
            partial.mkdir(parents=True)
            yield partial
            for path in sorted(partial.iterdir(), reverse=backwards):
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_words(
    folder: Path,
    report: PrivacyReport,
    figures: ReleasedFigures,
    audit: Audit | None,
    card: str | None = None,
) -> None:
    """Write what is said about a model: report and audit, and card and page of them.

    Args:
        card: README.md, where it says more than report and audit do.
    """
    (folder / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card or model_card(report, audit), encoding="utf-8")
    if audit is not None:
        (folder / AUDIT).write_text(audit.model_dump_json(indent=2) + "\n", encoding="utf-8")
    _write_figures(folder, report, figures, audit)


def _write_figures(
    folder: Path, report: PrivacyReport, figures: ReleasedFigures, audit: Audit | None
) -> None:
    (folder / PAGE).write_text(report_page(report, figures, audit), encoding="utf-8")
    if figures != ReleasedFigures():
        content = figures.model_dump_json(indent=2) + "\n"
        (folder / FIGURES).write_text(content, encoding="utf-8")
