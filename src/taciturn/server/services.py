"""The services of a gateway, put together once: routes translate, services decide."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from taciturn.server.allocator import TRIM_S, give_back
from taciturn.server.audit_log import AuditLog
from taciturn.server.background import Background
from taciturn.server.catalog.budgets import Budgets, LedgerView
from taciturn.server.catalog.datasets import Datasets
from taciturn.server.catalog.grants import Grants
from taciturn.server.catalog.policies import Policies
from taciturn.server.catalog.previews import Files, Previews
from taciturn.server.catalog.references import References
from taciturn.server.catalog.registration import JobSubmitter, Registrations
from taciturn.server.catalog.sql_sandbox import SqlSandbox
from taciturn.server.context import Gateway
from taciturn.server.identity.anonymous import Anonymous
from taciturn.server.identity.directory import Directory
from taciturn.server.identity.links import PasswordLinks
from taciturn.server.identity.logins import Logins
from taciturn.server.identity.oidc import Oidc
from taciturn.server.identity.passwords import Passwords
from taciturn.server.identity.principal import Principal
from taciturn.server.identity.remembered import Remembered
from taciturn.server.identity.sessions import Sessions
from taciturn.server.identity.tokens import Tokens
from taciturn.server.identity.users import Users
from taciturn.server.inference.chat import Chats
from taciturn.server.inference.completions import Completions
from taciturn.server.inference.model_workers import ModelWorkers
from taciturn.server.jobs.approvals import Approvals
from taciturn.server.jobs.broadcast import Hub
from taciturn.server.jobs.completion import Completion, OutputHandler
from taciturn.server.jobs.deferrals import Outage
from taciturn.server.jobs.dispatcher import Dispatcher
from taciturn.server.jobs.events import Events
from taciturn.server.jobs.leader import duty_of
from taciturn.server.jobs.leases import Leases
from taciturn.server.jobs.outputs import Outputs
from taciturn.server.jobs.protocol import WorkerProtocol
from taciturn.server.jobs.states import States
from taciturn.server.jobs.submission import Jobs
from taciturn.server.jobs.text_streams import Texts
from taciturn.server.jobs.warm_workers import Idle
from taciturn.server.launchers.base import Launcher
from taciturn.server.launchers.factory import Launching
from taciturn.server.metrics import Metrics
from taciturn.server.models.artifacts import Artifacts
from taciturn.server.models.base_models import BaseModels
from taciturn.server.models.incidents import Incidents
from taciturn.server.models.models import Models
from taciturn.server.models.results import Results
from taciturn.server.models.storage import open_store
from taciturn.server.retention import RetentionService
from taciturn.server.schema.tables import jobs as job_table
from taciturn.server.siblings import ANSWERS, AWAY, DISPATCH, FORGET, Siblings

_DISPATCH_S, _FIGURES_S, _PRUNE_S = 1.0, 1.0, 3600.0


@dataclass(frozen=True, slots=True)
class Services:
    """One of each."""

    gateway: Gateway
    siblings: Siblings
    background: Background
    metrics: Metrics
    audit_log: AuditLog
    retention: RetentionService
    entrants: Anonymous
    strangers: Anonymous
    directory: Directory
    users: Users
    tokens: Tokens
    logins: Logins
    links: PasswordLinks
    oidc: Oidc
    sessions: Sessions
    trials: SqlSandbox
    policies: Policies
    grants: Grants
    datasets: Datasets
    registrations: Registrations
    previews: Previews
    budgets: Budgets
    ledger_view: LedgerView
    approvals: Approvals
    jobs: Jobs
    work: WorkerProtocol
    dispatcher: Dispatcher
    launching: Launching
    outage: Outage
    events: Events
    hub: Hub
    artifacts: Artifacts
    models: Models
    model_workers: ModelWorkers
    base_models: BaseModels
    results: Results
    incidents: Incidents
    texts: Texts
    idle: Idle
    chats: Chats
    completions: Completions

    @classmethod
    def of(
        cls,
        gateway: Gateway,
        *,
        siblings: Siblings | None = None,
        launcher: Launcher | None = None,
        trials: SqlSandbox | None = None,
        desk: JobSubmitter | None = None,
        files: Files | None = None,
        released: OutputHandler | None = None,
    ) -> Services:
        """All services on one gateway; what they do besides requests is in `background`.

        Args:
            siblings: this process among those of the gateway; by default there is no other.
            launcher: starts workers; by default the one that the settings name.
            trials: runs selections on previews.
            desk: where probes are asked for, instead of `jobs`.
            files: where records for previews are read, instead of `artifacts`.
            released: what becomes of what jobs release, instead of `Outputs`.
        """
        settings = gateway.settings
        background, metrics, audit_log = Background(), Metrics(), AuditLog(gateway)
        siblings = siblings or Siblings()
        remembered = Remembered[Principal](tell=lambda: siblings.tell(FORGET))
        directory, passwords = Directory(gateway, remembered), Passwords()
        logins = Logins(gateway, directory, passwords)
        trials, policies = trials or SqlSandbox(), Policies(gateway)
        grants, references = Grants(gateway, policies), References(gateway)
        datasets = Datasets(gateway, policies)
        events, texts, idle = Events(gateway), Texts(), Idle()
        artifacts = Artifacts(gateway, open_store(settings))
        models = Models(gateway, artifacts)
        results = Results(gateway, artifacts, models)
        states, approvals = States(gateway, events), Approvals(gateway)
        ending = Completion(gateway, states, released or Outputs(artifacts, models, datasets))
        leases = Leases(gateway, states)

        def queued() -> None:
            background.wake("dispatcher")
            siblings.tell(DISPATCH)

        outage = Outage(gateway.now_ms, tell=lambda away: siblings.tell(AWAY if away else ANSWERS))
        started = Launching(launcher) if launcher else Launching.open(gateway, events.append)
        jobs = Jobs(
            gateway,
            states,
            ending,
            approvals,
            trials,
            queued=queued,
            keeps=started.keeps,
        )
        return cls(
            gateway=gateway,
            siblings=siblings,
            background=background,
            metrics=metrics,
            audit_log=audit_log,
            retention=RetentionService(gateway, artifacts.store),
            entrants=Anonymous(settings.anonymous_per_minute),
            strangers=Anonymous(settings.anonymous_per_minute),
            directory=directory,
            users=Users(gateway, directory),
            tokens=Tokens(gateway, directory),
            logins=logins,
            links=PasswordLinks(gateway, directory, passwords, logins),
            oidc=Oidc.of(gateway, directory, logins),
            sessions=Sessions(settings),
            trials=trials,
            policies=policies,
            grants=grants,
            datasets=datasets,
            registrations=Registrations(
                gateway, policies, datasets, trials, desk or jobs, references
            ),
            previews=Previews(gateway, datasets, trials, files or artifacts),
            budgets=Budgets(gateway, policies, grants),
            ledger_view=LedgerView(gateway, policies),
            approvals=approvals,
            jobs=jobs,
            work=WorkerProtocol(gateway, leases, ending, events, references),
            dispatcher=Dispatcher(
                gateway=gateway,
                jobs=jobs,
                states=states,
                leases=leases,
                ending=ending,
                directory=directory,
                launcher=started.launcher,
                duty=duty_of(settings, gateway.engine),
                url=lambda: settings.public_url or f"http://{settings.host}:{settings.port}",
                outage=outage,
                idle=idle,
            ),
            launching=started,
            outage=outage,
            events=events,
            hub=Hub(events),
            artifacts=artifacts,
            models=models,
            model_workers=ModelWorkers(gateway, models),
            base_models=BaseModels(gateway),
            results=results,
            incidents=Incidents(gateway),
            texts=texts,
            idle=idle,
            chats=Chats(artifacts),
            completions=Completions(jobs, results, texts),
        )

    def attend(self) -> None:
        """Have `background` do what goes on besides requests. Called once, before it starts."""
        if self.siblings.first:
            self._attend_jobs()
        self.siblings.on(FORGET, self.directory.remembered.lapse)
        self.siblings.on(AWAY, lambda: self.outage.hear(True))
        self.siblings.on(ANSWERS, lambda: self.outage.hear(False))
        self.background.add(self.siblings)
        self.background.on_stopping(self.hub.stop)
        self.background.on_stopping(self.idle.stop)
        self.background.on_stopping(self.trials.close)
        self.background.every("memory", TRIM_S, give_back)
        if self.siblings.count > 1:
            self.background.every("figures", _FIGURES_S, self.metrics.refresh)
        self.metrics.watch_own(
            "taciturn_queue",
            "What waits inside the gateway.",
            "queue",
            lambda: {"audit_log": self.audit_log.waiting, "streams": self.hub.watching},
        )
        self.metrics.watch("taciturn_jobs", "Jobs by their state.", "state", self._by_state)

    def _attend_jobs(self) -> None:
        self.base_models.register_embedded()
        self.policies.resume()
        self.grants.resume()
        self.registrations.resume()
        self.background.add(self.dispatcher.duty)
        self.background.every("dispatcher", _DISPATCH_S, self.dispatcher.turn)
        self.background.every("retention", _PRUNE_S, self.retention.prune)
        if self.launching.monitor is not None:
            self.background.add(self.launching.monitor)
        self.siblings.on(DISPATCH, lambda: self.background.wake("dispatcher"))

    def _by_state(self) -> dict[str, float]:
        counted = select(job_table.c.state, func.count()).group_by(job_table.c.state)
        found = self.gateway.read(lambda connection: connection.execute(counted).all())
        return {state: float(number) for state, number in found}
