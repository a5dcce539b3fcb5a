"""The worker's process: `python -m taciturn.worker`."""

from __future__ import annotations

import gc
import os
import resource
import sys
from pathlib import Path

from taciturn.collector import nothing_collected
from taciturn.errors import SpecError
from taciturn.wire.exits import WorkerExit
from taciturn.worker.settings import WorkerSettings


def main() -> int:
    """Run the job that the environment names; the exit code is a `WorkerExit`."""
    # A memory image would hold private rows.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    try:
        settings = WorkerSettings.of(os.environ)
    except SpecError as error:
        return _report_bad_configuration(error)
    # Whoever inherits the environment does not need it: a library's child, a tokenizer's thread.
    for secret in ("TACITURN_JOB_TOKEN", "TACITURN_CHECKPOINT_KEY"):
        os.environ.pop(secret, None)
    # Not before: they take longer to load than it takes to see that a variable is missing.
    with nothing_collected():
        from taciturn.worker.checkpoint_store import CheckpointStore
        from taciturn.worker.client import GatewayClient
        from taciturn.worker.job import Runner, accompany
        from taciturn.worker.processes import WorkerProcesses

    store = None
    if settings.checkpoint_url is not None and settings.checkpoint_key is not None:
        try:
            store = CheckpointStore.open(settings.checkpoint_url, settings.checkpoint_key)
        except SpecError as error:
            return _report_bad_configuration(error)
    processes = WorkerProcesses.of_torchrun(settings.peer_limit_s, os._exit)
    # What modules make stays: the collector, frozen then, need not look at it while a job runs.
    if not processes.first:
        return accompany(processes, settings.workspace, print_to, gc.freeze)
    runner = Runner(
        settings.workspace,
        when_fenced=lambda: os._exit(WorkerExit.FENCED),
        prints_to=print_to,
        store=store,
        processes=processes,
        own=() if settings.checkpoint_url is None else (settings.checkpoint_url,),
        when_loaded=gc.freeze,
    )
    client = GatewayClient.connected(settings.gateway_url, settings.job, settings.token)
    code = runner.run(client)
    processes.end(code)
    return code


def _report_bad_configuration(error: SpecError) -> int:
    """Print why the worker cannot begin; nothing is spent, and another try would end the same."""
    print(error, file=sys.stderr)
    return WorkerExit.BAD_CONFIGURATION


def print_to(path: Path) -> None:
    """Send standard output and error to a private file: a library may print what it stumbles on."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


if __name__ == "__main__":
    code = main()
    # A thread of a query that could not be stopped would keep the process.
    os._exit(code)
