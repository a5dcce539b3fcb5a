"""A worker in a process of its own, whose gateway is a folder: what it sends is there as files.

python worker_process.py FOLDER        kill it whenever you like
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from taciturn.wire.worker import Assignment, Charge
from taciturn.worker.job import Runner
from worker.fake_gateway import FakeGateway
from worker.safes import vault


def serve(folder: Path) -> FakeGateway:
    """The gateway of `folder`: what earlier workers had charged is in `charges.jsonl`."""
    gateway = FakeGateway(Assignment.model_validate_json((folder / "job.json").read_text()))
    charges = folder / "charges.jsonl"
    lines = charges.read_text().splitlines() if charges.exists() else []
    for line in lines:
        charge = Charge.model_validate_json(line)
        gateway.charges[charge.operation_id] = charge
    gateway.lease = gateway.attempts = len(list(folder.glob("lease-*")))

    def durable(method: str, what: str) -> None:
        """Write each answer to disk: a killed worker cannot take it back."""
        if what == "lease":
            (folder / f"lease-{gateway.lease}").touch()
        if what == "charges":
            text = "".join(c.model_dump_json() + "\n" for c in gateway.charges.values())
            # At once: whoever is killed here must not leave less than was there before.
            (folder / "charges.new").write_text(text)
            (folder / "charges.new").replace(charges)

    gateway.after = durable
    return gateway


def main(folder: Path) -> None:
    """Run the job of `folder`; its result is written once it has ended. Where `store` is there,
    copies of checkpoints go into it."""
    gateway = serve(folder)
    store = vault(folder / "store") if (folder / "store").is_dir() else None
    Runner(folder / "root", store=store).run(gateway.client())
    (folder / "files").mkdir(exist_ok=True)
    for name, content in gateway.files.items():
        (folder / "files" / name).write_bytes(content)
    (folder / "practitioner").write_bytes(b"\n".join(gateway.practitioner))
    (folder / "end.json").write_text(json.dumps(gateway.outcome.model_dump(mode="json")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
