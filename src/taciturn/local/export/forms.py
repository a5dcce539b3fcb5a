"""Export of a fitted model into a new folder: all of it or nothing, and only if it is the model."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from transformers import AutoModelForCausalLM

from taciturn.certificate.derivation import Comparison, Weights
from taciturn.certificate.signers import Signer
from taciturn.data.filesystem import check_output_folder
from taciturn.engine.model import adapter
from taciturn.engine.model.load import LoadedModel
from taciturn.engine.training.checkpoint import full_disk_is_clear
from taciturn.errors import MissingDependencyError, OutputError
from taciturn.local.export.comparison import compare
from taciturn.local.export.ollama import modelfile
from taciturn.local.export.origin import Origin
from taciturn.local.release import write_words
from taciturn.reports.card import Served, model_card
from taciturn.reports.figures import ReleasedFigures
from taciturn.reports.privacy import Audit
from taciturn.spec import ExportSpec

if TYPE_CHECKING:
    from taciturn.local.export.gguf_file import Plan

_WHOLE: Weights = "f32"
_UNTIED = (
    "the output layer was fitted and the base ties it to its embedding; in the export it has "
    "weights of its own, since an embedding that changed with it would be another model"
)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted model to be exported, and what is said of it."""

    model: Any
    base: LoadedModel
    origin: Origin
    figures: ReleasedFigures
    audit: Audit | None


def export(fitted: Fitted, output: Path, spec: ExportSpec, signer: Signer | None) -> None:
    """Write the model in a form that others serve, and the statement of what it was made of.

    Raises:
        MissingDependencyError: a GGUF file takes the `gguf` package.
        ModelError: the form has no place for this model; nothing was written.
        AdapterError: what was written, read back, is another model; nothing is left.
        OutputError: `output` is there already, or cannot be written.
    """
    check_new(output)
    untied = adapter.unties(fitted.model)
    plan = None if spec.form == "merged" else _gguf_plan(fitted.base, untied=untied)
    notes = [*([_UNTIED] if untied else []), *(plan.notes if plan is not None else [])]
    one = _one_model(fitted.model)
    with _appearing_at_once(output) as partial:
        if plan is None:
            file, weights = None, _WHOLE
            comparison = _write_merged(one, fitted, partial)
        else:
            file, weights = f"model-{spec.weights}.gguf", spec.weights
            comparison = _write_gguf(partial / file, plan, one, fitted, weights)
            if spec.form == "ollama":
                notes += _write_modelfile(partial, file, plan, fitted)
        served = Served(spec.form, weights, file, tuple(notes))
        _write_words(partial, fitted, served)
        fitted.origin.write(partial, spec.form, weights, comparison, signer)
    for note in notes:
        warnings.warn(note, stacklevel=2)


def check_new(output: Path) -> None:
    """Raise OutputError unless a folder of that name can be made."""
    check_output_folder(output)
    if os.path.lexists(output):
        raise OutputError(f"{output} already exists; choose another folder or remove it")


def _gguf_plan(base: LoadedModel, *, untied: bool) -> Plan:
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError(
            "writing a GGUF file needs the gguf package, and it is not installed; run "
            "`pip install 'taciturn[gguf]'`"
        )
    from taciturn.local.export.gguf_file import make_plan

    return make_plan(base, untied=untied)


def _one_model(model: Any) -> Any:
    """Return the fitted model as one in fp32, a copy."""
    return adapter.merged(model) if isinstance(model, PeftModel) else copy.deepcopy(model).float()


def _write_merged(one: Any, fitted: Fitted, folder: Path) -> Comparison:
    """Write a folder as transformers does; it is loaded again, without PEFT, and compared."""
    expected = adapter.probe_logits(one)
    adapter.save(one, fitted.base.tokenizer, fitted.base.name, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"taciturn": fitted.origin.about()}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    again: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=one.dtype).to(one.device)
    return compare(expected, adapter.probe_logits(again), "f32", "the merged folder")


def _write_gguf(path: Path, plan: Plan, one: Any, fitted: Fitted, weights: Weights) -> Comparison:
    from taciturn.local.export.gguf_file import write

    return write(path, plan, one, weights, fitted.origin.about())


def _write_modelfile(folder: Path, file: str, plan: Plan, fitted: Fitted) -> list[str]:
    text, notes = modelfile(
        file,
        fitted.base.tokenizer,
        plan.words.ends,
        plan.description.context_length,
        fitted.origin.about(),
    )
    (folder / "Modelfile").write_text(text, encoding="utf-8")
    return notes


def _write_words(folder: Path, fitted: Fitted, served: Served) -> None:
    card = model_card(
        fitted.origin.report,
        fitted.audit,
        figures=fitted.figures,
        served=served,
        certificate_sha256=fitted.origin.certificate_sha256,
        library="transformers" if served.file is None else "gguf",
        name=fitted.base.name,
    )
    write_words(folder, fitted.origin.report, fitted.figures, fitted.audit, card)


@contextmanager
def _appearing_at_once(output: Path) -> Iterator[Path]:
    """Yield a folder that takes its name at the end, if nothing fails; else nothing is left."""
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    with full_disk_is_clear(output):
        try:
            partial.mkdir(parents=True)
            yield partial
            os.rename(partial, output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
