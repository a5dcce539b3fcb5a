"""torchrun for workers: as `python -m torch.distributed.run`, but what a worker ends with is what
this ends with. A launcher decides by that code whether another try can do better."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args


def main(arguments: Sequence[str]) -> int:
    """Start the processes; returns the exit code of the first that failed."""
    config, command, command_arguments = config_from_args(parse_args(list(arguments)))
    try:
        elastic_launch(config=config, entrypoint=command)(*command_arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        code = int(failure.exitcode)
        return code if code >= 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
