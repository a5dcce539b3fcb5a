"""A worker that speaks the protocol and trains nothing. Standard library only: it starts quickly.

A block "runs" by a line in a file of the worker's own, after its charge was answered and not
before: what stands there in the end is what really happened, whatever the ledger believes.
"""

import contextlib
import http.client
import json
import os
import sys
import time
import uuid

BLOCK_STEPS = 5
PATIENCE_S = 20.0


class GoneError(Exception):
    """The gateway does not want this worker any more."""


class Gateway:
    """Asks until it is answered; the same message again is the same message."""

    def __init__(self, url: str, job: str, token: str) -> None:
        self.address = url.removeprefix("http://")
        self.path = f"/v1/worker/jobs/{job}/"
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def say(self, what: str, body: object) -> dict[str, object]:
        """The answer; GoneError for a refusal."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, text = self.once(what, body)
                if status < 300:
                    answer: dict[str, object] = json.loads(text) if text else {}
                    return answer
                if status < 500:
                    raise GoneError(text)
            time.sleep(0.05)
        raise GoneError("no answer")

    def once(self, what: str, body: object) -> tuple[int, str]:
        """One attempt."""
        connection = http.client.HTTPConnection(self.address, timeout=5)
        try:
            connection.request("POST", self.path + what, json.dumps(body), self.headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


def main() -> None:
    """One job, block by block."""
    job, notes = os.environ["TACITURN_JOB"], os.environ["NOTES"]
    gateway = Gateway(os.environ["TACITURN_GATEWAY_URL"], job, os.environ["TACITURN_JOB_TOKEN"])
    operation = uuid.uuid4().hex
    taken = gateway.say("lease", {"worker": "stub", "operation_id": operation})
    gateway.headers["Taciturn-Lease"] = str(taken["lease"])
    plan = taken["plan"]
    assert isinstance(plan, dict)
    note = os.open(f"{notes}/{operation}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for first in range(0, plan["steps"], BLOCK_STEPS):
        block = f"{operation}-{first:04}"
        body = {"operation_id": block, "first_step": first, "steps": BLOCK_STEPS}
        gateway.say("charges", body)
        os.write(note, f"{job} {block} {taken['namespace']}\n".encode())
        gateway.say("heartbeat", None)
    gateway.say("outcome", {"succeeded": True})


if __name__ == "__main__":
    try:
        main()
    except GoneError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
