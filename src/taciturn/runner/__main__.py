"""The worker's process: `python -m taciturn.runner`."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from taciturn.errors import SpecError
from taciturn.runner.settings import Settings


def main() -> int:
    """Run the job that the environment names; the exit code is an `Ending`."""
    # A memory image would hold private rows.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    try:
        settings = Settings.of(os.environ)
    except SpecError as error:
        print(error, file=sys.stderr)
        return 2
    # Not before: they load torch, which takes longer than to see that a variable is missing.
    from taciturn.runner.client import GatewayClient
    from taciturn.runner.job import Ending, Runner

    # Whoever inherits the environment does not need it: a library's child, a tokenizer's thread.
    os.environ.pop("TACITURN_JOB_TOKEN", None)
    runner = Runner(
        settings.workspace,
        when_fenced=lambda: os._exit(Ending.FENCED),
        prints_to=print_to,
    )
    client = GatewayClient.connected(settings.gateway_url, settings.job, settings.token)
    return int(runner.run(client))


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
