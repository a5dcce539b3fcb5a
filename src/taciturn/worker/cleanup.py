"""Cleanup of checkpoints in the store: those of jobs that are over, and whose last worker could not
remove them, because it was killed, or its machine was taken away, and no other one came.

Only workers reach the store, and only the gateway knows which jobs are over: so each worker with a
checkpoint store asks before its own job. A job that is over never runs again, so nothing that a
worker may go on from is removed; of a job that the gateway does not know, such as another
gateway's, nothing is.
"""

from __future__ import annotations

import re
import sys
import time

from taciturn.errors import FencedError
from taciturn.wire.worker import MOST_ASKED
from taciturn.worker.checkpoint_store import CheckpointStore
from taciturn.worker.client import GatewayClient

_JOB = re.compile(r"job_[0-9a-z]{16,32}")
_LIMIT_S = 30.0  # what is left after that, the next worker removes


def remove_leftovers(
    store: CheckpointStore, client: GatewayClient, limit_s: float = _LIMIT_S
) -> int:
    """Remove the checkpoints of jobs that are over; return the number of these jobs. A store that
    fails, or a gateway that does not know the request, keeps no worker from its job.

    Raises:
        FencedError: another worker has the job.
    """
    removed, end = 0, time.monotonic() + limit_s
    try:
        jobs = [name for name in store.names(store.root) if _JOB.fullmatch(name)]
        other_jobs = [name for name in jobs if name != client.job]
        for at in range(0, len(other_jobs), MOST_ASKED):
            some = other_jobs[at : at + MOST_ASKED]
            for job in client.over(some):
                if time.monotonic() > end:
                    return removed
                if job in some:
                    store.of(job, 0).remove()
                    removed += 1
    except FencedError:
        raise
    except Exception as error:  # a store's client raises what it likes
        print(
            f"the checkpoints of other jobs stay in the store: {type(error).__name__}",
            file=sys.stderr,
        )
    return removed
