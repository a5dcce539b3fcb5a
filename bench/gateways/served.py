"""A gateway in a process of its own, as `taciturn serve` runs it, whose workers do nothing."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from taciturn.server.launchers.base import Order, WorkerState


class Nobody:
    """A launcher whose workers are always about to come: jobs stay where they are."""

    def launch(self, order: Order) -> str:
        """See Launcher."""
        return order.handle

    def status(self, handle: str) -> WorkerState:
        """See Launcher."""
        return WorkerState.RUNNING

    def waiting(self, handle: str) -> bool:
        """See Launcher."""
        return False

    def stop(self, handle: str, grace_s: float) -> None:
        """See Launcher."""

    def alive(self) -> tuple[str, ...]:
        """See Launcher."""
        return ()

    def leftover_jobs(self) -> tuple[str, ...]:
        """See Launcher."""
        return ()

    def forget(self, job_id: str) -> None:
        """See Launcher."""


@dataclass(frozen=True)
class Served:
    """A running gateway."""

    port: int
    process: int

    def memory_mb(self) -> float:
        """Memory that its processes have written to and hold now; what they share counts once.

        Pages of files are not counted. The system can drop them at any time, and a process's share
        of a library grows when another program that has it open ends.
        """
        return sum(_shares_kb(process) for process in self._processes()) / 1024

    def cpu_s(self) -> float:
        """Processor time that its processes have used."""
        return sum(map(_cpu_s, self._processes()))

    def _processes(self) -> list[int]:
        path = Path(f"/proc/{self.process}/task/{self.process}/children")
        return [self.process, *map(int, path.read_text().split())]


@contextmanager
def served(settings: dict[str, str]) -> Iterator[Served]:
    """Start one with these settings; ends with the block."""
    port = _free_port()
    environment = {**os.environ, **settings, "TACITURN_PORT": str(port)}
    figures = Path(settings["TACITURN_DATA_DIR"]) / "figures"
    figures.mkdir()
    environment["PROMETHEUS_MULTIPROC_DIR"] = str(figures)
    folder = str(Path(__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join([folder, environment.get("PYTHONPATH", "")])
    with open(Path(settings["TACITURN_DATA_DIR"]) / "gateway.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateways.served"], env=environment, stdout=log, stderr=log
        )
        try:
            _wait(process, port)
            yield Served(port, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def more_files() -> None:
    """As many open sockets as the system lets us have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    """Until it answers; of several processes, until all have had the time to start."""
    start_s = time.monotonic()
    while time.monotonic() - start_s < 120 and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/v1/health")
            if connection.getresponse().status == 200:
                time.sleep((time.monotonic() - start_s) / 2)
                return
        time.sleep(0.05)
    raise RuntimeError("the gateway did not start; see gateway.log in its folder")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def _shares_kb(process: int) -> int:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    kb = {
        name: int(amount.split()[0]) for name, _, amount in (line.partition(":") for line in lines)
    }
    return kb["Pss_Anon"] + kb["Pss_Shmem"]


def _cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Serve until told to stop."""
    from taciturn.server.bootstrap import open_gateway
    from taciturn.server.serve import serve
    from taciturn.server.settings import Settings

    more_files()
    sys.exit(serve(open_gateway(Settings()), launcher=Nobody()))


if __name__ == "__main__":
    main()
