"""A gateway in memory that speaks the wire values: no database, no worker, no privacy.

Jobs are over as soon as they are made; their events are a short story that a stream may be cut at.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import httpx
from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from support.client import Client
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.plan import TimeChoice, TrainingPlan, make_plan, other_times
from taciturn.reports.figures import Figure, ModelScore, ReleasedEvaluation
from taciturn.reports.privacy import Audit, GuessRound, PrivacyReport, ScoreHistogram
from taciturn.wire.datasets import (
    BudgetView,
    ColumnView,
    DatasetState,
    DatasetView,
    DisclosureView,
    FoundColumns,
    GrantTerms,
    GrantView,
    NewDataset,
    PolicyTerms,
    PolicyView,
    PreviewView,
    Selection,
    StatedColumns,
    SyntheticPreview,
)
from taciturn.wire.events import (
    EventPage,
    JobEvent,
    NumberedEvent,
    PlanEvent,
    ProgressEvent,
    StateEvent,
)
from taciturn.wire.identity import (
    AuditLogExport,
    LinkRedemption,
    Login,
    LoginAnswer,
    LoginLook,
    LoginRequest,
    LoginState,
    NewLoginRequest,
    NewPassword,
    NewToken,
    NewUser,
    PasswordLink,
    PasswordLinkView,
    Pruned,
    Redeemed,
    Retention,
    Role,
    Self,
    TokenSecret,
    TokenView,
    UserChange,
    UserView,
)
from taciturn.wire.jobs import (
    ApprovalView,
    Decision,
    DecisionView,
    JobRequest,
    JobState,
    JobView,
    ModelView,
    OperatedJob,
    PlanView,
    RemoteFit,
    Withdrawal,
)
from taciturn.wire.ledger import AnchorView, LedgerProblem, NewVerification, VerificationView
from taciturn.wire.models import BaseModelView, NewBaseModel
from taciturn.wire.notifications import (
    DeliveryView,
    EndpointSecret,
    NewAddress,
    NewEndpoint,
    NotificationSettings,
    Preferences,
    TestRequest,
)
from taciturn.wire.public_datasets import NewPublicDataset, PublicDatasetView
from taciturn.wire.results import (
    AuditResult,
    EvaluateResult,
    FitResult,
    JobResult,
    SampleLine,
    SampleResult,
    SynthesizeResult,
)
from taciturn.wire.values import Page, PolicyLine, Problem

Key = Annotated[str, Header(alias="Idempotency-Key")]
URL, TOKEN = "http://testserver", "tac_test"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
EXPORTED = b'{"id": 1}\n'
DP = PolicyLine(kind="DP", text="DP (epsilon=3, delta=1e-06, unit=patient_id)")
MOCK = PolicyLine(kind="mock", text="mock (invented rows)")
NONE = PolicyLine(kind="no guarantee", text="no guarantee (approved by ada, bob)")
NOTIFICATIONS = NotificationSettings(
    mail=True, address=None, pending_address=None, preferences=(), endpoints=()
)
ENDPOINT = EndpointSecret(
    id="end_00000000000000000001",
    name="team",
    host="hooks.example.org",
    form="json",
    created_at=NOW,
    secret="whsec_secret",
)
DELIVERY = DeliveryView(
    id="msg_00000000000000000001",
    kind="job.failed",
    channel="webhook",
    endpoint="end_00000000000000000001",
    state="sent",
    attempts=1,
    answer="200",
    created_at=NOW,
    next_at=None,
    ended_at=NOW,
)
REPORT = PrivacyReport(
    guarantee="differential privacy",
    epsilon=3.0,
    delta=1e-6,
    privacy_unit="patient_id",
    n_units=1100,
    mechanism="DP-SGD",
    steps=3,
    expected_batch_size=10,
    base_model="taciturn/tiny-medical",
    trainable_parameters=1,
    taciturn_version="0",
)
AUDIT = Audit(
    threat_model="black box",
    method="one run",
    canaries=100,
    canary_kind="new-token",
    canary_commitment="0" * 64,
    confidence=0.95,
    rounds=(GuessRound(guesses=40, correct=22, epsilon_lower_bound=0.0),),
    guesses=40,
    correct=22,
    epsilon_lower_bound=0.0,
    gaussian_epsilon_lower_bound=0.0,
    auc=0.52,
    promised_epsilon=3.0,
    delta=1e-6,
    largest_advantage=0.6,
    attacker_limits=(),
    histogram=ScoreHistogram(edges=(0.0, 1.0), included=(50,), excluded=(50,)),
    verdict="nothing was found",
    taciturn_version="0",
)
FOUND = FoundColumns(
    columns=(ColumnView(name="17", type="string"), ColumnView(name="Dupont", type="string")),
    named_by="first line",
    doubts=("column 1, '17', is a number",),
)
FACTS = PublicFacts(
    n_units=1100, base_model="taciturn/tiny-medical", base_parameters=1_000_000, context_length=160
)


class Wire(httpx.BaseTransport):
    """Between a client and an app in this process, which have different HTTP libraries."""

    def __init__(self, app: Client) -> None:
        self._app = app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer whole, as the app does."""
        answer = self._app.request(
            request.method,
            str(request.url),
            content=request.read(),
            headers=dict(request.headers),
        )
        return httpx.Response(
            answer.status_code, headers=dict(answer.headers), content=answer.content
        )


@dataclass
class FakeApi:
    """State of the gateway, and its misbehaviour.

    Attributes:
        after_the_end: events that come when the stream has ended.
        cut_after: a stream of events breaks off after so many, each time it is asked for.
        failing: state and code that the next jobs end with.
        seen: method and path of every request, in order.
        asked: the queries of the audit log, in order.
        found: what a worker finds in the next datasets, where their owner does not state it.
        stated: what owners have said of columns.
    """

    name: str = "phee"
    datasets: dict[str, DatasetView] = field(default_factory=dict)
    public: dict[str, PublicDatasetView] = field(default_factory=dict)
    jobs: dict[str, JobView] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    grants: dict[str, GrantView] = field(default_factory=dict)
    decisions: list[tuple[str, str]] = field(default_factory=list)
    policies: dict[str, PolicyView] = field(default_factory=dict)
    after_the_end: list[NumberedEvent] = field(default_factory=list)
    cut_after: int | None = None
    failing: Problem | None = None
    outcome: JobState = JobState.SUCCEEDED
    seen: list[str] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    found: FoundColumns | None = None
    stated: dict[str, StatedColumns] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    synthetic: dict[str, SyntheticPreview] = field(default_factory=dict)
    resumed_from: list[str | None] = field(default_factory=list)
    answers: list[LoginState] = field(default_factory=list)
    passwords: list[str] = field(default_factory=list)
    exports: list[AuditLogExport] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    app: Client | None = None

    def __post_init__(self) -> None:
        self.datasets[self.name] = dataset(self.name)
        self.policies["patients"] = PolicyView(
            budget={"epsilon": 8, "delta": 1e-6},
            namespace="patients",
            owner="ada",
            version=1,
            created_at=NOW,
            updated_at=NOW,
        )

    def http(self) -> httpx.Client:
        """Connections to it."""
        if self.app is None:
            self.app = Client(app_of(self), base_url=URL)
        return httpx.Client(transport=Wire(self.app))

    def submit(self, asked: Any, key: str) -> JobView:
        """Make a job, once for each key."""
        if key in self.keys:
            return self.jobs[self.keys[key]]
        job_id = f"job_{next(self.numbers):020d}"
        unlimited = getattr(asked, "target_epsilon", None) == "unlimited"
        self.jobs[job_id] = JobView(
            id=job_id,
            kind=asked.kind,
            state=JobState.QUEUED,
            requester="ada",
            namespace="patients",
            dataset=asked.data.dataset if isinstance(asked, RemoteFit) else None,
            model="mod_00000000000000000001",
            request=asked.model_dump(mode="json", exclude_defaults=True),
            policy=NONE if unlimited else DP,
            created_at=NOW,
            updated_at=NOW,
        )
        self.keys[key] = job_id
        return self.jobs[job_id]

    def finish(self, job_id: str) -> None:
        """End a job."""
        failure = None
        if self.outcome is JobState.FAILED:
            failure = {"code": "data_unreadable", "text": "ask the owner", "incident": "inc_1"}
        changed = {"state": self.outcome, "failure": failure}
        view = self.jobs[job_id].model_dump() | changed
        self.jobs[job_id] = JobView.model_validate(view)

    def events(self) -> list[NumberedEvent]:
        """Return the events of every job."""
        plan = _plan()
        said: list[JobEvent] = [
            StateEvent(state=JobState.QUEUED),
            StateEvent(state=JobState.RUNNING),
            PlanEvent(plan=plan),
            *(ProgressEvent(step=i, steps=4, epsilon=0.5 * i) for i in range(1, 5)),
            StateEvent(
                state=self.outcome,
                code="data_unreadable" if self.outcome is JobState.FAILED else None,
            ),
        ]
        return [
            NumberedEvent(sequence=i, at=NOW + timedelta(seconds=10 * i), event=event)
            for i, event in enumerate(said, start=1)
        ]


def _spec() -> Any:
    from taciturn.spec import FitSpec

    return FitSpec(target_epsilon=3, batch_size=10, steps=4, text_field="text")


@functools.cache
def _plan() -> TrainingPlan:
    """The plan of every fit; to compute its noise takes a while."""
    return make_plan(_spec(), FACTS)


@functools.cache
def _other_times() -> tuple[TimeChoice, ...]:
    return other_times(_spec(), FACTS, _plan())


def dataset(name: str, description: str | None = None) -> DatasetView:
    """A dataset that is ready."""
    return DatasetView(
        name=name,
        namespace="patients",
        state="ready",
        unit="patient_id",
        units=1100,
        columns=(ColumnView(name="id", type="string"), ColumnView(name="text", type="string")),
        owner="ada",
        description=description,
        policy=PolicyLine(kind="DP", text="DP, at most epsilon=8 for all"),
        preview="mock",
        created_at=NOW,
    )


def model_view() -> ModelView:
    """The one model there is."""
    return ModelView(
        id="mod_00000000000000000001",
        name=None,
        job="job_1",
        owner="ada",
        base_model="taciturn/tiny-medical",
        namespace="patients",
        policy=DP,
        report=REPORT.model_dump(mode="json"),
        files=("privacy_report.json", "README.md"),
        created_at=NOW,
    )


def refuse(code: str, status: int, detail: str, **more: Any) -> Response:
    """A problem."""
    body = Problem(type="about:blank", title="t", status=status, detail=detail, code=code, **more)
    return JSONResponse(
        body.model_dump(exclude_none=True),
        status_code=status,
        media_type="application/problem+json",
    )


def _constants() -> dict[str, Any]:
    """Return the answers that are always the same, by their paths."""
    models = {"large/model": 7_000_000_000, "taciturn/tiny-medical": 4_737_280}
    about = {"context_length": 160, "vocabulary": 6144, "created_at": NOW}
    columns = (ColumnView(name="id", type="string"), ColumnView(name="text", type="string"))
    return {
        "/v1/self": Self(
            name="ada",
            display_name=None,
            roles=(Role.OWNER,),
            groups=(),
            actions=("jobs:create",),
            expires_at=None,
            password_links=(PasswordLinkView(made_by="root", created_at=NOW, expires_at=NOW),),
            server_version="0",
        ),
        "/v1/datasets/{name}/preview": PreviewView(
            policy=MOCK, columns=columns, rows=({"id": "1", "text": "<b>Mr Mock</b> coughs."},)
        ),
        "/v1/models": Page(items=(model_view(),)),
        "/v1/models/{model_id}": model_view(),
        "/v1/base-models": Page(
            items=tuple(BaseModelView(name=k, parameters=n, **about) for k, n in models.items())
        ),
        "/v1/approvals": Page(items=(approval(),)),
        "/v1/approvals/{approval_id}": approval(),
        "/v1/users": Page(items=(UserView(name="ada", roles=(Role.OWNER,), created_at=NOW),)),
        "/v1/retention": Retention(
            audit_log_days=365, incident_days=30, audit_log_entries=2, incidents=0
        ),
        "/v1/retention/exports/{number}": Response(EXPORTED),
        "/v1/tokens": Page(
            items=(TokenView(id="tok_1", name="ci", scopes=(), created_at=NOW, expires_at=NOW),)
        ),
        "/v1/notifications": NOTIFICATIONS,
        "/v1/notifications/deliveries": Page(items=(DELIVERY,)),
        "/v1/incidents/{incident_id}": {"id": "inc_1", "log": "Traceback: a row"},
    }


def app_of(fake: FakeApi) -> FastAPI:
    """Return the gateway as an application."""
    app = FastAPI()

    def add_constant(path: str, answer: Any) -> None:
        app.add_api_route(path, lambda: answer, methods=["GET"])

    for path, answer in _constants().items():
        add_constant(path, answer)

    @app.middleware("http")
    async def watch(request: Request, call_next: Any) -> Response:
        fake.seen.append(f"{request.method} {request.url.path}")
        entrance = request.url.path in (
            "/v1/login",
            "/v1/login-requests",
            "/v1/login-requests/answers",
            "/v1/password-links/redemptions",
        )
        if not entrance and request.headers.get("authorization") != f"Bearer {TOKEN}":
            return refuse("unauthenticated", 401, "give a valid token")
        if fake.failing is not None:
            return refuse(
                **fake.failing.model_dump(include={"code", "status", "detail", "incident"})
            )
        return await call_next(request)  # type: ignore[no-any-return]

    @app.put("/v1/self/password", status_code=204)
    def change_password(change: NewPassword) -> None:
        fake.passwords.append(change.new.get_secret_value())

    @app.post("/v1/login", status_code=201)
    def log_in(login: Login) -> TokenSecret:
        fake.passwords.append(login.password.get_secret_value())
        return secret(TOKEN)

    @app.post("/v1/login-requests", status_code=201)
    def begin_login(new: NewLoginRequest) -> LoginRequest:
        return LoginRequest(
            secret="tac_device",
            code="BCDF-GHJK",
            url=f"{URL}/login-requests/BCDF-GHJK",
            expires_at=datetime.now(UTC) + timedelta(minutes=10),
            interval_s=0.001,
        )

    @app.post("/v1/login-requests/answers")
    def look(look: LoginLook) -> LoginAnswer:
        state = fake.answers.pop(0)
        token = secret(TOKEN) if state is LoginState.ALLOWED else None
        return LoginAnswer(state=state, token=token)

    @app.post("/v1/password-links/redemptions")
    def redeem(redemption: LinkRedemption) -> Redeemed:
        assert redemption.link.get_secret_value() == "tac_link"
        fake.passwords.append(redemption.password.get_secret_value())
        return Redeemed(name="ada")

    @app.get("/v1/datasets")
    def datasets(cursor: str | None = None) -> Page[DatasetView]:
        names = list(fake.datasets)
        at = int(cursor or 0)
        following = str(at + 1) if at + 1 < len(names) else None
        return Page(items=(fake.datasets[names[at]],), next_cursor=following)

    @app.post("/v1/datasets", status_code=201)
    def add(new: NewDataset) -> DatasetView:
        view = dataset(new.name, new.description)
        names = None if fake.found is None else tuple(each.name for each in fake.found.columns)
        if names is not None and new.columns != names:
            waiting = {"state": DatasetState.UNCONFIRMED, "columns": None, "found": fake.found}
            view = view.model_copy(update=waiting)
        fake.datasets[new.name] = view
        return view

    @app.put("/v1/datasets/{name}/columns", response_model=None)
    def state_columns(name: str, stated: StatedColumns) -> DatasetView | Response:
        found = fake.datasets[name].found
        names = [each.name for each in stated.columns or ()]
        if stated.header and (found is None or [each.name for each in found.columns] != names):
            return refuse("conflict", 409, "these are not the ones that were found")
        fake.stated[name], fake.datasets[name] = stated, dataset(name)
        return fake.datasets[name]

    @app.get("/v1/datasets/{name}", response_model=None)
    def one(name: str) -> DatasetView | Response:
        if name not in fake.datasets:
            return refuse("not_found", 404, f"there is no dataset {name!r}")
        return fake.datasets[name]

    @app.delete("/v1/datasets/{name}", status_code=204, response_model=None)
    def remove(name: str) -> Response | None:
        if fake.datasets.pop(name, None) is None:
            return refuse("not_found", 404, "no such dataset")
        return None

    @app.get("/v1/public-datasets")
    def public_datasets() -> Page[PublicDatasetView]:
        return Page(items=tuple(fake.public.values()))

    @app.post("/v1/public-datasets", status_code=201)
    def declare(new: NewPublicDataset) -> PublicDatasetView:
        view = PublicDatasetView(declared_by="olga", created_at=NOW, **new.model_dump())
        fake.public[new.name] = view
        return view

    @app.get("/v1/public-datasets/{name}")
    def one_public(name: str) -> PublicDatasetView:
        return fake.public[name]

    @app.delete("/v1/public-datasets/{name}", status_code=204, response_model=None)
    def remove_public(name: str) -> None:
        del fake.public[name]

    @app.post("/v1/datasets/{name}/selections", response_model=None)
    def select(name: str, selection: Selection) -> PreviewView | Response:
        if "count(" in selection.select:
            return refuse("invalid", 422, "count is an aggregate; write row-wise expressions")
        columns = (ColumnView(name="text", type="string"),)
        return PreviewView(policy=MOCK, columns=columns, rows=({"text": "selected"},))

    @app.get("/v1/budgets/{namespace}")
    def budget(namespace: str) -> BudgetView:
        return BudgetView(
            namespace=namespace,
            epsilon=8,
            delta=1e-6,
            charged=0.25,
            taken=0.5,
            exceptions=1,
            grants=tuple(fake.grants.values()),
        )

    @app.get("/v1/budgets")
    def budgets() -> Page[BudgetView]:
        return Page(items=(budget("patients"),))

    @app.get("/v1/policies/{namespace}")
    def policy(namespace: str) -> PolicyView:
        return fake.policies[namespace]

    @app.put("/v1/policies/{namespace}", response_model=None)
    def put_policy(
        namespace: str, terms: PolicyTerms, if_match: Annotated[str, Header()]
    ) -> PolicyView | Response:
        current = fake.policies[namespace]
        if if_match != f'"{current.version}"':
            return refuse("conflict", 409, "somebody has changed it")
        changed = current.model_dump() | terms.model_dump() | {"version": current.version + 1}
        fake.policies[namespace] = PolicyView.model_validate(changed)
        return fake.policies[namespace]

    @app.get("/v1/policies/{namespace}/grants")
    def grants(namespace: str) -> Page[GrantView]:
        return Page(items=tuple(fake.grants.values()))

    @app.put("/v1/policies/{namespace}/grants/{holder}")
    def grant(namespace: str, holder: str, terms: GrantTerms) -> GrantView:
        fake.grants[holder] = GrantView(
            namespace=namespace, holder=holder, charged=0, taken=0, **terms.model_dump()
        )
        return fake.grants[holder]

    @app.delete("/v1/policies/{namespace}/grants/{holder}", status_code=204)
    def revoke(namespace: str, holder: str) -> None:
        fake.grants.pop(holder)

    @app.post("/v1/plans")
    def plan(asked: JobRequest) -> PlanView:
        made = _plan()
        judged = {"epsilon": 0.5, "delta": 1e-6, "n_units": 110}
        judged |= {"gain_std": 0.01, "accuracy_gain_std": 0.002}
        return PlanView(
            plan=judged if asked.kind == "evaluate" else made.model_dump(mode="json"),
            worth=made.worth,
            other_times=_other_times(),
            epsilon=3.0,
            delta=1e-6,
            share_of_budget=0.3,
            share_of_grant=None,
            admitted=True,
            needs_approval=None,
            public_data=fake.public.get(getattr(asked, "public_data", None) or ""),
            policy=DP,
        )

    @app.post("/v1/jobs", status_code=201)
    def submit(asked: JobRequest, key: Key) -> JobView:
        return fake.submit(asked, key)

    @app.get("/v1/jobs")
    def jobs(state: JobState | None = None) -> Page[JobView]:
        wanted = [job for job in fake.jobs.values() if state in (None, job.state)]
        return Page(items=tuple(wanted))

    @app.get("/v1/jobs/{job_id}")
    def job(job_id: str) -> JobView:
        return fake.jobs[job_id]

    @app.post("/v1/jobs/{job_id}/cancel")
    def cancel(job_id: str) -> JobView:
        fake.outcome = JobState.CANCELLED
        fake.finish(job_id)
        return fake.jobs[job_id]

    @app.get("/v1/jobs/{job_id}/events", response_model=None)
    def events(
        job_id: str,
        after: int = 0,
        accept: Annotated[str, Header()] = "*/*",
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> StreamingResponse | EventPage:
        if "text/event-stream" not in accept:
            said = [*fake.events(), *fake.after_the_end]
            return EventPage(items=tuple(each for each in said if each.sequence > after)[:5])
        fake.resumed_from.append(last_event_id)
        # One event from before the point of resumption: a client must drop it.
        after = max(0, int(last_event_id or 0) - 1)
        return StreamingResponse(story(job_id, after), media_type="text/event-stream")

    def story(job_id: str, after: int) -> Iterator[str]:
        yield ": alive\n\n"
        sent = 0
        for event in fake.events():
            if event.sequence <= after:
                continue
            if fake.cut_after is not None and sent > fake.cut_after:
                # A message without its empty line: incomplete, to be dropped.
                yield f"data: {event.model_dump_json()}\n"
                return
            if isinstance(event.event, StateEvent) and event.event.state.over:
                fake.finish(job_id)
            data = event.model_dump_json(exclude_none=True)
            yield f"id: {event.sequence}\nevent: {event.event.type}\ndata: {data}\n\n"
            sent += 1

    @app.get("/v1/jobs/{job_id}/result")
    def result(job_id: str) -> JobResult:
        found = fake.jobs[job_id]
        about: dict[str, Any] = {"job": job_id, "policy": found.policy, "files": ()}
        if found.kind == "fit":
            return FitResult(model=model_view(), **about)
        if found.kind == "sample":
            prompts = found.request["prompts"]
            return SampleResult(
                samples=tuple(SampleLine(prompt=each, text=" coughs") for each in prompts), **about
            )
        if found.kind == "audit":
            return AuditResult(audit=AUDIT, **about)
        if found.kind == "synthesize":
            return SynthesizeResult(**about)
        score = ModelScore(
            nats_per_token=Figure(value=1.5), token_accuracy=Figure(value=0.5, std=0.01)
        )
        evaluation = ReleasedEvaluation(basis="public", n_units=2, base=score, fitted=score)
        return EvaluateResult(evaluation=evaluation, **about)

    @app.get("/v1/models/{model_id}/files/{name}")
    def file(model_id: str, name: str) -> Response:
        content = REPORT.model_dump_json() if name == "privacy_report.json" else name
        return Response(content)

    @app.get("/v1/jobs/{job_id}/files/{name}")
    def job_file(job_id: str, name: str) -> Response:
        return Response(_records() if name == "synthetic.parquet" else REPORT.model_dump_json())

    @app.delete("/v1/models/{model_id}", status_code=204)
    @app.delete("/v1/tokens/{token_id}", status_code=204)
    @app.delete("/v1/notifications/address", status_code=204)
    @app.delete("/v1/notifications/endpoints/{endpoint_id}", status_code=204)
    def forget(model_id: str = "", token_id: str = "", endpoint_id: str = "") -> None:
        """Do nothing: nobody asks for it again."""

    @app.get("/v1/operations/jobs")
    def operated_jobs(state: JobState | None = None) -> Page[OperatedJob]:
        wanted = [job for job in fake.jobs.values() if state in (None, job.state)]
        return Page(items=tuple(map(operated, wanted)))

    @app.post("/v1/operations/jobs/{job_id}/cancel")
    def end(job_id: str) -> OperatedJob:
        return operated(cancel(job_id))

    @app.post("/v1/base-models", status_code=201)
    def add_base_model(new: NewBaseModel) -> BaseModelView:
        return BaseModelView(created_at=NOW, **new.model_dump())

    @app.get("/v1/datasets/{name}/disclosures")
    def disclosures(name: str) -> Page[DisclosureView]:
        left = DisclosureView(at=NOW, step="read", kind="model", names=(), to="user:paul")
        return Page(items=(left,))

    @app.get("/v1/ledger/{namespace}/entries")
    def entries(namespace: str) -> Page[Any]:
        return Page(items=({"sequence": 1, "kind": "open"},))

    @app.post("/v1/completions")
    def complete(asked: dict[str, Any]) -> StreamingResponse:
        pieces = [{"choices": [{"text": text}]} for text in (" co", "ughs")]
        lines = [f"data: {json.dumps(piece)}\n\n" for piece in pieces]
        return StreamingResponse([*lines, "data: [DONE]\n\n"], media_type="text/event-stream")

    @app.put("/v1/datasets/{name}/preview/synthetic", status_code=204)
    def synthetic(name: str, made: SyntheticPreview) -> None:
        fake.synthetic[name] = made

    @app.post("/v1/approvals/{approval_id}/withdrawals", status_code=201)
    def withdraw(approval_id: str, wanted: Withdrawal) -> ApprovalView:
        fake.decisions.append((approval_id, f"withdraw: {wanted.comment}"))
        return approval()

    @app.post("/v1/approvals/{approval_id}/decisions", status_code=201)
    def decide(approval_id: str, answer: Decision) -> ApprovalView:
        fake.decisions.append((approval_id, answer.decision))
        return approval()

    @app.post("/v1/users", status_code=201)
    def add_user(new: NewUser) -> UserView:
        fake.sources[new.name] = new.sources
        return UserView(name=new.name, roles=new.roles, sources=new.sources, created_at=NOW)

    @app.patch("/v1/users/{name}")
    def change_user(name: str, change: UserChange) -> UserView:
        fake.sources[name] = change.sources
        sources = change.sources or ()
        return UserView(name=name, roles=(Role.OWNER,), sources=sources, created_at=NOW)

    @app.post("/v1/users/{name}/password-links", status_code=201)
    def make_link(name: str) -> PasswordLink:
        return PasswordLink(name=name, url=f"{URL}/v1/password#tac_link", expires_at=NOW)

    @app.post("/v1/retention/prunes")
    def prune() -> Pruned:
        return Pruned(exports=tuple(fake.exports), incidents=1)

    @app.get("/v1/retention/exports")
    def exports() -> Page[AuditLogExport]:
        return Page(items=tuple(fake.exports))

    @app.post("/v1/tokens", status_code=201)
    def add_token(new: NewToken) -> TokenSecret:
        return secret("tac_secret", new.name)

    @app.post("/v1/ledger/verifications")
    def verify(asked: NewVerification, key: Key) -> VerificationView:
        gone = [each for each in asked.anchors if each.entries > 6]
        return VerificationView(
            ok=not gone,
            namespaces=1,
            entries=6,
            seals_checked=True,
            anchors_checked=len(asked.anchors),
            problems=tuple(
                LedgerProblem(namespace=each.namespace, sequence=each.entries, text="it is gone")
                for each in gone
            ),
            anchors=(AnchorView(namespace="patients", entries=6, head="0" * 64),),
        )

    @app.put("/v1/notifications/preferences")
    def choose(choices: Preferences) -> NotificationSettings:
        return NOTIFICATIONS.model_copy(update=dict(choices))

    @app.put("/v1/notifications/address")
    def set_address(new: NewAddress) -> NotificationSettings:
        return NOTIFICATIONS.model_copy(update={"pending_address": new.address})

    @app.post("/v1/notifications/address/confirmations")
    def confirm_address() -> NotificationSettings:
        return NOTIFICATIONS.model_copy(update={"address": "ada@hospital.example"})

    @app.post("/v1/notifications/endpoints")
    def add_endpoint(new: NewEndpoint) -> EndpointSecret:
        host = httpx.URL(new.url).host
        return ENDPOINT.model_copy(update={"name": new.name, "host": host, "form": new.form})

    @app.post("/v1/notifications/endpoints/{endpoint_id}/secrets")
    def rotate_secret(endpoint_id: str) -> EndpointSecret:
        return ENDPOINT.model_copy(update={"id": endpoint_id, "rotated_at": NOW})

    @app.post("/v1/notifications/tests", status_code=202)
    def send_test(asked: TestRequest) -> None:
        """Send nothing."""

    @app.get("/v1/audit-log")
    def audit_log(request: Request, cursor: int = 3) -> Page[Any]:
        fake.asked.append({name: request.query_params[name] for name in request.query_params})
        entry = {"id": cursor, "actor": "user:ada", "action": "jobs:create", "code": None}
        return Page(items=(entry,), next_cursor=str(cursor - 1) if cursor > 1 else None)

    return app


def operated(job: JobView) -> OperatedJob:
    """A job as an administrator sees it."""
    seen = job.model_dump(include={"id", "kind", "state", "requester", "created_at", "updated_at"})
    return OperatedJob(attempt=1, started_at=NOW, **seen)


def _records() -> bytes:
    """Two records that a model has written, as Parquet."""
    from pyarrow import BufferOutputStream, Table
    from pyarrow.parquet import write_table

    buffer = BufferOutputStream()
    table = Table.from_pydict({"text": ["A cough.", "A fever."], "prompt": ["", ""]})
    write_table(table, buffer)
    return bytes(buffer.getvalue())


def secret(text: str, name: str = "login") -> TokenSecret:
    """A token that was just made."""
    return TokenSecret(id="tok_1", name=name, scopes=(), created_at=NOW, expires_at=NOW, token=text)


def exported(number: int, previous: str) -> AuditLogExport:
    """An export of the audit log."""
    made = AuditLogExport(
        id=number,
        first_entry=number,
        last_entry=number,
        entries=1,
        first_at=NOW,
        last_at=NOW,
        sha256=hashlib.sha256(EXPORTED).hexdigest(),
        previous=previous,
        digest=previous,
        created_at=NOW,
    )
    return made.model_copy(update={"digest": made.chained()})


def approval() -> ApprovalView:
    """A request that one person has approved."""
    return ApprovalView(
        id="apr_00000000000000000001",
        job="job_1",
        namespace="patients",
        requester="eve",
        reason="no_guarantee",
        request={"data": {"part": {"side": "train", "test_share": 0.1}}},
        kind="fit",
        dataset="phee",
        model="taciturn/tiny-medical",
        steps=40,
        purpose="a poster for the retreat",
        decisions=(
            DecisionView(approver="bob", decision="approved", comment="fine by me", at=NOW),
        ),
        left=0.63,
        left_after=0.63,
        state="open",
        approved_by=("bob",),
        needed=2,
        expires_at=NOW,
        created_at=NOW,
    )
