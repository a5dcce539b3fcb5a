"""torchrun for workers: as `python -m torch.distributed.run`, but what a worker ends with is what
this ends with. A launcher decides by that code whether another try can do better."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from taciturn.wire.exits import WorkerExit


def main(arguments: Sequence[str]) -> int:
    """Start the processes; returns the exit code of the first that failed."""
    try:
        run(parse_args(list(arguments)))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        code = int(failure.exitcode)
        return code if code >= 0 else 128 - code
    except SignalException:
        return WorkerExit.INTERRUPTED  # the machine is taken away
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
