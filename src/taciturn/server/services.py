"""The services of a gateway, put together once: routes translate, services decide."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from taciturn.malloc import TRIM_S, return_free_memory
from taciturn.server.audit_log import AuditLog
from taciturn.server.background import Background, PeriodicTask
from taciturn.server.catalog.budgets import Budgets, LedgerView
from taciturn.server.catalog.datasets import Datasets
from taciturn.server.catalog.disclosures import Disclosures
from taciturn.server.catalog.grants import Grants
from taciturn.server.catalog.policies import Policies
from taciturn.server.catalog.previews import Files, Previews
from taciturn.server.catalog.public_datasets import PublicDatasets
from taciturn.server.catalog.reads import Reads
from taciturn.server.catalog.references import References
from taciturn.server.catalog.registration import JobSubmitter, Registrations
from taciturn.server.catalog.spending import Spending
from taciturn.server.catalog.sql_sandbox import SqlSandbox
from taciturn.server.context import Gateway
from taciturn.server.fine_tuning.jobs import FineTuning
from taciturn.server.fine_tuning.uploads import Uploads
from taciturn.server.identity.anonymous import Anonymous
from taciturn.server.identity.directory import Directory
from taciturn.server.identity.links import PasswordLinks
from taciturn.server.identity.login_requests import LoginRequests
from taciturn.server.identity.logins import Logins
from taciturn.server.identity.oidc import Oidc
from taciturn.server.identity.passwords import Passwords
from taciturn.server.identity.principal import Principal
from taciturn.server.identity.remembered import Remembered
from taciturn.server.identity.sessions import Sessions
from taciturn.server.identity.token_uses import PERIOD_S
from taciturn.server.identity.tokens import Tokens
from taciturn.server.identity.users import Users
from taciturn.server.inference.chat import Chats
from taciturn.server.inference.completions import Completions
from taciturn.server.inference.model_workers import ModelWorkers
from taciturn.server.jobs.approvals import Approvals
from taciturn.server.jobs.broadcast import Broadcast
from taciturn.server.jobs.completion import Completion, OutputHandler
from taciturn.server.jobs.deferrals import Outage
from taciturn.server.jobs.dispatcher import Dispatcher
from taciturn.server.jobs.events import Events
from taciturn.server.jobs.leader import LeaderTasks, open_leader
from taciturn.server.jobs.leases import Leases
from taciturn.server.jobs.operations import Operations
from taciturn.server.jobs.outputs import Outputs
from taciturn.server.jobs.overview import Overview
from taciturn.server.jobs.protocol import WorkerProtocol
from taciturn.server.jobs.states import States
from taciturn.server.jobs.submission import Jobs
from taciturn.server.jobs.text_streams import TextStreams
from taciturn.server.jobs.warm_workers import WarmWorkers
from taciturn.server.launchers.base import Launcher
from taciturn.server.launchers.factory import Launching
from taciturn.server.metrics import Metrics, forget_dead_processes
from taciturn.server.models.artifacts import Artifacts
from taciturn.server.models.base_models import BaseModels
from taciturn.server.models.certificates import Certificates
from taciturn.server.models.evidence import EvidenceDesk
from taciturn.server.models.incidents import Incidents
from taciturn.server.models.models import Models
from taciturn.server.models.results import Results
from taciturn.server.models.storage import open_store
from taciturn.server.notifications.delivery import Delivery
from taciturn.server.notifications.preferences import NotificationPreferences
from taciturn.server.process_messages import ProcessMessages, Topic
from taciturn.server.retention import RetentionService
from taciturn.server.schema.tables import jobs as job_table
from taciturn.server.tracking.reporter import RunReporter

_DISPATCH_S, _FIGURES_S, _SHARE_S, _TEXT_S, _PRUNE_S = 1.0, 1.0, 1.0, 60.0, 3600.0
_READS_S = 20.0
_DELIVER_S, _TRACK_S = 2.0, 5.0


@dataclass(frozen=True, slots=True)
class Services:
    """One of each."""

    gateway: Gateway
    process_messages: ProcessMessages
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
    login_requests: LoginRequests
    links: PasswordLinks
    oidc: Oidc
    sessions: Sessions
    preferences: NotificationPreferences
    delivery: Delivery
    reporter: RunReporter
    trials: SqlSandbox
    policies: Policies
    grants: Grants
    datasets: Datasets
    registrations: Registrations
    public_datasets: PublicDatasets
    previews: Previews
    budgets: Budgets
    ledger_view: LedgerView
    spending: Spending
    disclosures: Disclosures
    approvals: Approvals
    jobs: Jobs
    work: WorkerProtocol
    dispatcher: Dispatcher
    launching: Launching
    outage: Outage
    operations: Operations
    overview: Overview
    events: Events
    broadcast: Broadcast
    artifacts: Artifacts
    models: Models
    model_workers: ModelWorkers
    base_models: BaseModels
    certificates: Certificates
    evidence: EvidenceDesk
    results: Results
    incidents: Incidents
    text_streams: TextStreams
    warm_workers: WarmWorkers
    chats: Chats
    completions: Completions
    fine_tuning: FineTuning
    uploads: Uploads

    @classmethod
    def of(
        cls,
        gateway: Gateway,
        *,
        launcher: Launcher | None = None,
        trials: SqlSandbox | None = None,
        desk: JobSubmitter | None = None,
        files: Files | None = None,
        released: OutputHandler | None = None,
    ) -> Services:
        """Make all services on one gateway; what they do besides requests is in `background`.

        Args:
            launcher: starts workers; by default the one that the settings name.
            trials: runs selections on previews.
            desk: where probes are asked for, instead of `jobs`.
            files: where records for previews are read, instead of `artifacts`.
            released: what becomes of what jobs release, instead of `Outputs`.
        """
        settings = gateway.settings
        background, metrics, audit_log = Background(), Metrics(), AuditLog(gateway)
        messages = ProcessMessages(gateway.engine)
        remembered = Remembered[Principal](tell=lambda: messages.publish(Topic.ACCESS_CHANGED))
        directory, passwords = Directory(gateway, remembered), Passwords()
        logins = Logins(gateway, directory, passwords)
        trials, policies = trials or SqlSandbox(), Policies(gateway)
        grants, references = Grants(gateway, policies), References(gateway)
        datasets = Datasets(gateway, policies)
        events, text_streams = Events(gateway), TextStreams(gateway)
        artifacts = Artifacts(gateway, open_store(settings))
        models = Models(gateway, artifacts)
        results = Results(gateway, artifacts, models)
        states, approvals = States(gateway, events), Approvals(gateway)
        ending = Completion(gateway, states, released or Outputs(artifacts, models, datasets))
        leases = Leases(gateway, states)

        def queued() -> None:
            background.wake("dispatcher")
            warm_workers.wake()
            messages.publish(Topic.JOB_QUEUED)

        def tell(away: bool) -> None:
            messages.publish(Topic.LAUNCHER_AWAY if away else Topic.LAUNCHER_ANSWERS)

        outage = Outage(gateway.now_ms, tell)
        started = Launching(launcher) if launcher else Launching.open(gateway, events.append)
        jobs = Jobs(
            gateway,
            states,
            ending,
            approvals,
            trials,
            queued=queued,
            keeps=started.keeps,
            machine=started.machine,
        )
        dispatcher = Dispatcher(
            gateway=gateway,
            jobs=jobs,
            states=states,
            leases=leases,
            ending=ending,
            directory=directory,
            launcher=started.launcher,
            leader=open_leader(settings, gateway.engine),
            url=lambda: settings.public_url or f"http://{settings.host}:{settings.port}",
            outage=outage,
        )
        warm_workers = WarmWorkers(dispatcher.claim_sample)
        registrations = Registrations(gateway, policies, datasets, trials, desk or jobs, references)
        return cls(
            gateway=gateway,
            process_messages=messages,
            background=background,
            metrics=metrics,
            audit_log=audit_log,
            retention=RetentionService(gateway, artifacts.store),
            entrants=Anonymous(settings.anonymous_per_minute, kind="entrants"),
            strangers=Anonymous(settings.anonymous_per_minute, kind="strangers"),
            directory=directory,
            users=Users(gateway, directory),
            tokens=Tokens(gateway, directory),
            logins=logins,
            login_requests=LoginRequests(gateway, logins),
            links=PasswordLinks(gateway, directory, passwords, logins),
            oidc=Oidc.of(gateway, directory, logins),
            sessions=Sessions(settings),
            preferences=NotificationPreferences(gateway),
            delivery=Delivery(gateway, lambda: dispatcher.leader.leads),
            reporter=RunReporter(gateway, artifacts, lambda: dispatcher.leader.leads),
            trials=trials,
            policies=policies,
            grants=grants,
            datasets=datasets,
            registrations=registrations,
            public_datasets=PublicDatasets(gateway, references),
            previews=Previews(gateway, datasets, trials, files or artifacts),
            budgets=Budgets(gateway, policies, grants),
            spending=Spending(gateway, policies),
            disclosures=Disclosures(gateway, datasets, Reads(gateway)),
            ledger_view=LedgerView(gateway, policies, audit_log),
            approvals=approvals,
            jobs=jobs,
            work=WorkerProtocol(gateway, leases, ending, events, references),
            dispatcher=dispatcher,
            launching=started,
            outage=outage,
            operations=Operations(gateway, started.launcher, outage, warm_workers),
            overview=Overview(gateway),
            events=events,
            broadcast=Broadcast(events),
            artifacts=artifacts,
            models=models,
            model_workers=ModelWorkers(gateway, models),
            base_models=BaseModels(gateway),
            certificates=Certificates(gateway, models, artifacts),
            evidence=EvidenceDesk(gateway, models, artifacts),
            results=results,
            incidents=Incidents(gateway),
            text_streams=text_streams,
            warm_workers=warm_workers,
            chats=Chats(artifacts),
            completions=Completions(jobs, results, text_streams),
            fine_tuning=FineTuning(jobs, datasets),
            uploads=Uploads(gateway, registrations),
        )

    def attend(self) -> None:
        """Have `background` do what goes on besides requests. Called once, before it starts."""
        background, messages = self.background, self.process_messages
        forget_dead_processes()
        self.base_models.register_embedded()
        self.policies.resume()
        self.grants.resume()
        self.registrations.resume()
        background.add(self.dispatcher.leader)
        tasks = self._leader_tasks()
        background.add(tasks)

        def turn() -> None:
            self.dispatcher.turn()
            tasks.follow()

        background.every("dispatcher", _DISPATCH_S, turn)
        self._subscribe()
        background.add(messages)
        background.on_stopping(self.broadcast.stop)
        background.on_stopping(self.warm_workers.stop)
        background.on_stopping(self.trials.close)
        background.add(self.directory.uses)
        background.every("token uses", PERIOD_S, self.directory.uses.write)
        background.every("memory", TRIM_S, return_free_memory)
        background.every("anonymous", _SHARE_S, self._share_counts)
        if self.metrics.shared:
            background.every("figures", _FIGURES_S, self.metrics.refresh)
        self.metrics.watch_own(
            "taciturn_queue",
            "What waits inside the gateway.",
            "queue",
            lambda: {"audit_log": self.audit_log.waiting, "streams": self.broadcast.watching},
        )
        self.metrics.watch("taciturn_jobs", "Jobs by their state.", "state", self._by_state)

    def _leader_tasks(self) -> LeaderTasks:
        monitor = self.launching.monitor
        return LeaderTasks(
            self.dispatcher.leader,
            (
                lambda: PeriodicTask("retention", _PRUNE_S, self.retention.prune),
                lambda: PeriodicTask("reads", _READS_S, self.disclosures.reads.turn),
                lambda: PeriodicTask("text", _TEXT_S, self.text_streams.prune),
                lambda: PeriodicTask("notifications", _DELIVER_S, self.delivery.turn),
                lambda: PeriodicTask("tracker", _TRACK_S, self.reporter.turn),
                *(() if monitor is None else (monitor,)),
            ),
        )

    def _subscribe(self) -> None:
        def wake_for_job(_: str) -> None:
            self.background.wake("dispatcher")
            self.warm_workers.wake()

        subscribe = self.process_messages.subscribe
        subscribe(Topic.JOB_QUEUED, wake_for_job)
        subscribe(Topic.ACCESS_CHANGED, lambda _: self.directory.remembered.lapse())
        subscribe(Topic.LAUNCHER_AWAY, lambda _: self.outage.hear(True))
        subscribe(Topic.LAUNCHER_ANSWERS, lambda _: self.outage.hear(False))
        subscribe(Topic.EVENT, lambda _: self.broadcast.wake())
        subscribe(Topic.TEXT, self.text_streams.wake)
        for limits in (self.entrants, self.strangers):
            subscribe(Topic.ANONYMOUS, limits.hear)

    def _share_counts(self) -> None:
        for limits in (self.entrants, self.strangers):
            limits.publish(lambda message: self.process_messages.publish(Topic.ANONYMOUS, message))

    def _by_state(self) -> dict[str, float]:
        query = select(job_table.c.state, func.count()).group_by(job_table.c.state)
        rows = self.gateway.read(lambda connection: connection.execute(query).all())
        return {state: float(number) for state, number in rows}
