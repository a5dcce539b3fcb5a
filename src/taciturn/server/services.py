"""The services of a gateway, put together once: routes translate, services decide."""

from __future__ import annotations

from dataclasses import dataclass

from taciturn.server.approvals import Approvals
from taciturn.server.gateway import Gateway
from taciturn.server.identity.directory import Directory
from taciturn.server.jobs.dispatcher import Dispatcher
from taciturn.server.jobs.ending import Ending, NothingReleased
from taciturn.server.jobs.events import Events
from taciturn.server.jobs.jobs import Jobs
from taciturn.server.jobs.leases import Leases
from taciturn.server.jobs.states import States
from taciturn.server.jobs.work import Work
from taciturn.server.launchers.local import LocalLauncher
from taciturn.server.launchers.port import Launcher
from taciturn.server.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """One of each."""

    gateway: Gateway
    directory: Directory
    approvals: Approvals
    jobs: Jobs
    work: Work
    dispatcher: Dispatcher

    @classmethod
    def of(cls, gateway: Gateway, launcher: Launcher | None = None) -> Services:
        """All services on one gateway, whose workers are started by `launcher`."""
        directory, events = Directory(gateway), Events(gateway)
        states = States(gateway, events)
        ending = Ending(gateway, states, NothingReleased())
        leases, approvals = Leases(gateway, states), Approvals(gateway)
        jobs = Jobs(gateway, states, ending, approvals)
        settings = gateway.settings
        return cls(
            gateway=gateway,
            directory=directory,
            approvals=approvals,
            jobs=jobs,
            work=Work(gateway, leases, ending, events),
            dispatcher=Dispatcher(
                gateway=gateway,
                jobs=jobs,
                states=states,
                leases=leases,
                ending=ending,
                directory=directory,
                launcher=launcher or _launcher(settings),
                url=lambda: settings.public_url or f"http://{settings.host}:{settings.port}",
            ),
        )


def _launcher(settings: Settings) -> Launcher:
    return LocalLauncher(settings.data_dir / "workspaces", settings.worker_env)
