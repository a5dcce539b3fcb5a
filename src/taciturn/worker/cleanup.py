"""Checkpoints in the store of jobs that are over, and whose last worker could not remove them: it
was killed, or its machine was taken away, and no other one came.

Only workers reach the store, and only the gateway knows which jobs are over: so each worker that
has a vault asks, before its own job. A job that is over never runs again, so nothing that a
worker may go on from is removed; of a job that the gateway does not know, such as another
gateway's, nothing is.
"""

from __future__ import annotations

import re
import sys
import time

from taciturn.errors import FencedError
from taciturn.wire.worker import MOST_ASKED
from taciturn.worker.checkpoint_store import Vault
from taciturn.worker.client import GatewayClient

_JOB = re.compile(r"job_[0-9a-z]{16,32}")
_LIMIT_S = 30.0  # what is left after that, the next worker removes


def remove_leftovers(vault: Vault, client: GatewayClient, limit_s: float = _LIMIT_S) -> int:
    """Remove what jobs that are over have left; returns of how many. A store that does not do it,
    or a gateway that does not know the question, keeps nobody from working.

    Raises:
        FencedError: another worker has the job.
    """
    removed, end = 0, time.monotonic() + limit_s
    try:
        found = [each for each in vault.names(vault.root) if _JOB.fullmatch(each)]
        others = [each for each in found if each != client.job]
        for at in range(0, len(others), MOST_ASKED):
            some = others[at : at + MOST_ASKED]
            for job in client.over(some):
                if time.monotonic() > end:
                    return removed
                if job in some:
                    vault.of(job, 0).remove()
                    removed += 1
    except FencedError:
        raise
    except Exception as error:  # a store's client raises what it likes
        print(f"what other jobs left in the store stays: {type(error).__name__}", file=sys.stderr)
    return removed
