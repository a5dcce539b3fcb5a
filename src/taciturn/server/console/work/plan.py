"""Plan of a fit: what it would be, cost and be worth, as one moves its sliders; then asked for."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import Response
from pydantic import ValidationError

from taciturn.errors import TaciturnError
from taciturn.server.console.rendering import PageRoute, go_to, page, sentence, share
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import MAX_LIMIT, Paging
from taciturn.server.problems import ProblemError, from_error
from taciturn.server.services import Services
from taciturn.wire.datasets import DatasetState, DatasetView, PolicyView
from taciturn.wire.jobs import JobKind, PlanView, RemoteFit
from taciturn.wire.values import Name

router = APIRouter(route_class=PageRoute)
Creator = Annotated[Principal, Depends(Requires(Action.JOBS_CREATE))]

LENGTHS = ("steps", "epochs", "max_minutes")
_OWN_FIELDS = ("text_field", *LENGTHS, "batch_size", "name", "purpose", "public_data")
_FIELD = re.compile(r"^([a-z_]+)\b[=:]?")
_EPSILON = "3"
_LEAST_EPSILON = 0.1

Text = Annotated[str, Form(max_length=300)]
Number = Annotated[str, Form(max_length=20)]


@dataclass(frozen=True, slots=True)
class PlanForm:
    """Fields of the form; all are text, so that what is wrong is said at its field.

    Attributes:
        guarantee: "none" asks for no guarantee, whatever epsilon says.
        like: a job whose other choices are taken as they were.
    """

    dataset: Annotated[str, Form(max_length=64)] = ""
    model: Text = ""
    text_field: Text = ""
    target_epsilon: Number = ""
    guarantee: Number = ""
    select: Annotated[str, Form(max_length=10_000)] = ""
    steps: Number = ""
    epochs: Number = ""
    max_minutes: Number = ""
    batch_size: Number = ""
    name: Text = ""
    purpose: Text = ""
    public_data: Text = ""
    like: Text = ""

    def fit(self, services: Services, caller: Principal) -> RemoteFit:
        """Return the request; raises ProblemError `invalid`, its text begins with the field."""
        earlier = _earlier(services, caller, self.like)
        request = {name: value for name, value in earlier.items() if name not in _OWN_FIELDS}
        if self.text_field:
            for name in ("question_field", "answer_field", "messages_field", "format"):
                request.pop(name, None)
        own_values = {name: getattr(self, name) for name in _OWN_FIELDS}
        data = {**(earlier.get("data") or {}), "dataset": self.dataset}
        request |= {name: value for name, value in own_values.items() if value}
        if not self.public_data:
            request.pop("public_text_field", None)
        request["model"] = self.model
        request["data"] = data | {"select": self.select or None}
        request["target_epsilon"] = (
            "unlimited" if self.guarantee == "none" else _number(self.target_epsilon)
        )
        try:
            return RemoteFit.model_validate(request)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"][:1])
            message = first["msg"].removeprefix("Value error, ")
            raise ProblemError("invalid", f"{place}: {message}" if place else message) from None


def plan_fields(
    dataset: Annotated[str, Query(max_length=64)] = "",
    model: Annotated[str, Query(max_length=300)] = "",
    target_epsilon: Annotated[str, Query(max_length=20)] = "",
    guarantee: Annotated[str, Query(max_length=20)] = "",
    like: Annotated[str, Query(max_length=40)] = "",
    public_data: Annotated[str, Query(max_length=64)] = "",
) -> PlanForm:
    """A dependency: fields of the form that a link or another choice of data fills beforehand."""
    return PlanForm(
        dataset=dataset,
        model=model,
        target_epsilon=target_epsilon,
        guarantee=guarantee,
        like=like,
        public_data=public_data,
    )


Filled = Annotated[PlanForm, Depends(plan_fields)]
Planned = Annotated[PlanForm, Depends()]


@router.get("/plan")
def read_plan(request: Request, caller: Creator, services: Svc, filled: Filled) -> Response:
    """Show the form in which a fit is planned."""
    earlier = _earlier(services, caller, filled.like)
    views = services.datasets.page(caller, "", MAX_LIMIT)
    ready = [view for view in views if view.state is DatasetState.READY]
    name = filled.dataset or (earlier.get("data") or {}).get("dataset", "")
    dataset = next((view for view in ready if view.name == name), None)
    if dataset is None and name:
        view = services.datasets.read(name, caller)
        dataset = view if view.state is DatasetState.READY else None
        ready += [] if dataset is None else [dataset]
    dataset = dataset or (ready[0] if ready else None)
    values = _values(earlier, filled)
    return page(
        request,
        "plan.html",
        caller,
        datasets=ready,
        chosen=None if dataset is None else dataset.name,
        also=_also(earlier),
        public=services.public_datasets.page(caller, Paging(limit=MAX_LIMIT)).items,
        **_dataset_fields(services, caller, dataset, values),
    )


@router.get("/plan/columns")
def read_columns(
    request: Request, caller: Creator, services: Svc, dataset: Name, filled: Filled
) -> Response:
    """Show the fields that depend on the dataset."""
    view = services.datasets.read(dataset, caller)
    values = _values({}, filled)
    fields_of_data = _dataset_fields(services, caller, view, values)
    return page(request, "plan_columns.html", caller, **fields_of_data)


@router.post("/plan")
def make_plan(request: Request, caller: Creator, services: Svc, form: Planned) -> Response:
    """Show what a fit would be and cost; nothing is held."""
    try:
        plan = services.jobs.plan(caller, form.fit(services, caller))
    except (ProblemError, TaciturnError) as error:
        return _at_its_field(request, caller, error)
    return page(
        request,
        "plan_result.html",
        caller,
        plan=plan,
        key=secrets.token_urlsafe(12),
        confirmation=_confirmation(plan),
        details=_details(plan),
        epochs=_epochs(plan),
    )


@router.post("/jobs")
def ask_for_job(
    caller: Creator,
    services: Svc,
    form: Planned,
    key: Annotated[str, Form(max_length=40)] = "",
) -> Response:
    """Ask for the fit that was planned; once, however often its button is pressed."""
    fit = form.fit(services, caller)
    text = f"{key or secrets.token_urlsafe(12)} {fit.model_dump_json()}"
    job = services.jobs.submit(caller, fit, hashlib.sha256(text.encode()).hexdigest())
    return go_to(f"/jobs/{job.id}")


def _earlier(services: Services, caller: Principal, job_id: str) -> Mapping[str, Any]:
    """Request of an earlier fit that the caller may see, what it left open left out."""
    if not job_id:
        return {}
    view = services.jobs.view(caller, job_id)
    if view.kind is not JobKind.FIT:
        raise ProblemError("invalid", f"like: job {job_id!r} is no fit; leave it out")
    request = RemoteFit.model_validate(view.request)
    return request.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})


def _values(earlier: Mapping[str, Any], filled: PlanForm) -> dict[str, str]:
    """Values of the form: what a link says, else those of an earlier fit, else the usual ones."""
    values = {name: getattr(filled, name) for name in (field.name for field in fields(PlanForm))}
    for name in ("model", *_OWN_FIELDS):
        values[name] = values[name] or str(earlier.get(name, ""))
    values["select"] = (earlier.get("data") or {}).get("select") or ""
    epsilon = earlier.get("target_epsilon")
    if epsilon == "unlimited":
        values["guarantee"] = values["guarantee"] or "none"
    elif epsilon is not None:
        values["target_epsilon"] = values["target_epsilon"] or f"{epsilon:g}"
    values["target_epsilon"] = values["target_epsilon"] or _EPSILON
    values["length"] = next((name for name in LENGTHS if values[name]), "steps")
    return values


def _also(earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Choices of an earlier fit that have no field here, and are taken as they were."""
    fields_here = {*_OWN_FIELDS, "model", "data", "target_epsilon"}
    choices = {name: value for name, value in earlier.items() if name not in fields_here}
    part = (earlier.get("data") or {}).get("part")
    return choices | ({} if part is None else {"part": f"{part['side']} of the split"})


def _dataset_fields(
    services: Services, caller: Principal, dataset: DatasetView | None, values: dict[str, str]
) -> dict[str, Any]:
    """Columns of a dataset, and what its policy allows, as the form offers them."""
    columns = () if dataset is None else dataset.columns or ()
    texts = [column.name for column in columns if "string" in column.type]
    likely = "text" if "text" in texts or not texts else texts[-1]
    quoted = '"' + likely.replace('"', '""') + '"'
    bases = services.base_models.list(Paging(limit=MAX_LIMIT)).items
    terms = None if dataset is None else services.policies.read(dataset.namespace, caller)
    if terms is not None:
        bases = tuple(
            base for base in bases if any(fnmatchcase(base.name, name) for name in terms.models)
        )
    most = 10.0 if terms is None else terms.job_epsilon or terms.budget.epsilon
    return {
        "values": {**values, "text_field": values["text_field"] or likely},
        "bases": bases,
        "columns": [column.name for column in columns],
        "example": f"lower({quoted}) AS text",
        "units": 1 if dataset is None else dataset.units,
        "least_epsilon": min(_LEAST_EPSILON, most / 10),
        "most_epsilon": most,
        "terms": terms,
        "refusal": None if terms is None else _refusal(terms, services.gateway.now_ms()),
        "exceptions": terms is not None and _has_approvers(terms, caller),
    }


def _refusal(terms: PolicyView, now_ms: int) -> str | None:
    """Reason why no fit may be asked for at all; None where one may."""
    if JobKind.FIT not in terms.kinds:
        return f"The policy of this data allows no fits. Ask {terms.owner}, who owns it."
    if terms.expires_at is not None and terms.expires_at.timestamp() * 1000 <= now_ms:
        return f"The policy of this data has expired. {terms.owner} can renew it."
    return None


def _has_approvers(terms: PolicyView, caller: Principal) -> bool:
    """Return True if there may be two people who could let a fit without a guarantee through."""
    holders = {f"user:{terms.owner}", *terms.approvers} - {f"user:{caller.name}"}
    return len(holders) >= 2 or any(holder.startswith("group:") for holder in holders)


def _number(text: str) -> float | str:
    """A number as people write it; other text is refused where it is checked."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise ProblemError(
            "invalid", f"target_epsilon: {text[:20]!r} is no number; give one such as 3"
        ) from None


def _at_its_field(
    request: Request, caller: Principal, error: ProblemError | TaciturnError
) -> Response:
    """Show what is wrong at the field that it is about; raises `error` where that is not known."""
    problem = error if isinstance(error, ProblemError) else from_error(error)
    match = None if problem is None else _FIELD.match(problem.detail)
    field = None if match is None else match[1]
    if field in LENGTHS:
        field = "length"
    if problem is None or field not in {*PlanForm.__slots__, "length"}:
        raise error
    request.state.code = problem.code
    answer = page(
        request,
        "plan_error.html",
        caller,
        status=problem.problem().status,
        text=sentence(
            problem.detail if match is None else problem.detail.removeprefix(f"{match[1]}: ")
        ),
    )
    answer.headers["HX-Retarget"] = f"#error-{field}"
    answer.headers["HX-Reswap"] = "innerHTML"
    return answer


def _confirmation(plan: PlanView) -> str:
    """Consequence of asking for it, in words."""
    if plan.epsilon is None:
        return (
            "Ask for a fit without any guarantee? Two people have to approve it. Its model may "
            "repeat private text, and the exception stays on record."
        )
    left, left_after = plan.left_of_budget or 0.0, plan.left_of_budget_after or 0.0
    when = "once two people approve it" if plan.needs_approval else "at once"
    return (
        f"Ask for this fit? It holds {share(left - left_after)} of the budget {when}, and spends "
        f"it as it runs. {share(max(0.0, left_after))} are left for other jobs."
    )


def _details(plan: PlanView) -> dict[str, Any]:
    """Choices that the plan has made, by their names."""
    adapter, privacy = plan.plan.get("adapter") or {}, plan.plan.get("privacy") or {}
    choices = {
        "Method": adapter.get("method"),
        "Rank of the adapter, by which its size goes": adapter.get("r"),
        "Learning rate, the length of a step": plan.plan.get("learning_rate"),
        "Clip norm, the most that one unit moves a step": privacy.get("l2_clip_norm"),
        "Delta, the chance that the bound does not hold": privacy.get("delta"),
        "Tokens (pieces of words) of a record at most": plan.plan.get("max_tokens"),
        "Records of a unit at most": plan.plan.get("max_records_per_unit"),
    }
    return {name: value for name, value in choices.items() if value is not None}


def _epochs(plan: PlanView) -> float:
    return float(plan.plan["steps"] * plan.plan["batch_size"] / plan.plan["n_units"])
