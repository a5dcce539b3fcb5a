"""`taciturn fit | plan | evaluate` where the data is behind a gateway: same flags, same words."""

from __future__ import annotations

from typing import Any

from taciturn.cli.gateway import connected, named_dataset, say, show_rows
from taciturn.errors import SpecError
from taciturn.planning.plan import TrainingPlan
from taciturn.sdk.client import Client
from taciturn.sdk.dataset import RemoteDataset
from taciturn.sdk.evaluation import COLUMNS
from taciturn.spec import GATEWAY

_LOUD = (
    "target_epsilon is unlimited: NO PRIVACY. The model may repeat any row it was fitted on; two "
    "people other than you have to approve it."
)

_LEDGER = ("ledger", "ledger_namespace")
"""What adds up here; a gateway has a ledger of its own."""


def run_remote_fit(fields: dict[str, Any]) -> None:
    """Fit where the data is; without --no-wait, wait, and download if --output is given."""
    output, wait = fields.pop("output", None), fields.pop("wait", True)
    _only_here(fields, ("resume", "show_private", "signing_key", *_LEDGER))
    if fields.get("target_epsilon") == "unlimited":
        say(_LOUD, style="bold yellow")
    with connected() as client:
        model = _needed(fields, "model")
        job = _data(client, fields, "train").fit(model, **fields)
        say(f"job {job.id}: {job.policy}")
        worth = TrainingPlan.model_validate(job.view.plan).worth if job.view.plan else None
        if worth is not None:
            say(f"worth: {worth.text}")
        if not wait:
            if job.view.approval is not None:
                say(f"two people have to approve it: taciturn approval show {job.view.approval}")
            say(f"wait for it: taciturn job wait {job.id}")
            return
        fitted = job.fitted(progress=True)
        say(fitted.policy, style="bold")
        say(f"fitted model: {GATEWAY}{fitted.id}")
        if output is not None:
            say(f"downloaded: {fitted.download(output).resolve()}")
        say(f"Try it:\n  taciturn sample {GATEWAY}{fitted.id} --prompt 'The patient'")


def run_remote_plan(fields: dict[str, Any]) -> None:
    """Print what a fit would be and cost; holds and spends nothing."""
    fields.pop("verbose", None)
    fields.pop("output", None)
    fields.pop("purpose", None)
    _only_here(fields, ("n_units", "signing_key", *_LEDGER))
    with connected() as client:
        model = _needed(fields, "model")
        say(repr(_data(client, fields, "train").plan(model, **fields)))


def run_remote_evaluate(fields: dict[str, Any]) -> None:
    """Judge a gateway's model on public texts, or paid for on a gateway's dataset."""
    _only_here(fields, ("device", "signing_key", "n_units", *_LEDGER))
    planned = fields.pop("plan", False)
    with connected() as client:
        model = client.model(_needed(fields, "model").removeprefix(GATEWAY))
        remote = str(fields.get("data", "")).startswith(GATEWAY)
        data = _data(client, fields, "test") if remote else _needed(fields, "data")
        if planned:
            if not isinstance(data, RemoteDataset):
                raise SpecError("public text is judged exactly and for free; leave --plan out")
            say(str(model.plan_evaluation(data, **fields)))
            return
        found = model.evaluate(data, **fields)
        say(f"policy: {found.policy}", style="bold")
        show_rows(COLUMNS, found.rows())
        if found.epsilon is not None:
            say(f"the model's guarantee is now {model.privacy.policy}", style="bold")


def _data(client: Client, fields: dict[str, Any], side: str) -> RemoteDataset:
    """The dataset that the fields name, prepared, and the side of it that is meant."""
    held_out = fields.pop("held_out", None)
    data = named_dataset(client, _needed(fields, "data"), fields.pop("select", None))
    if held_out is None:
        return data
    train, test = data.split(test=held_out)
    return train if side == "train" else test


def _needed(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise SpecError(f"{name} is missing; give it")
    return str(fields.pop(name))


def _only_here(fields: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if fields.pop(name, None):
            raise SpecError(f"{name} is for data on this machine; leave it out for a gateway's")
