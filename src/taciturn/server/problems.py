"""Errors as RFC 9457 problems, each with a stable code.

A service raises a ProblemError, or an error of taciturn's own tree; anything else becomes 500
`internal` with an incident number and no words of the exception, which could quote anything.
"""

from __future__ import annotations

from typing import Any

from taciturn import errors
from taciturn.wire.values import Problem

MEDIA_TYPE = "application/problem+json"


class ProblemError(Exception):
    """A refusal, with a code of CODES."""

    def __init__(
        self, code: str, detail: str, *, headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.code, self.detail, self.headers, self.more = code, detail, headers or {}, more

    def problem(self, instance: str | None = None) -> Problem:
        """The body of the answer."""
        status, title = CODES[self.code]
        return Problem(
            type=f"urn:taciturn:problem:{self.code}",
            title=title,
            status=status,
            detail=self.detail,
            code=self.code,
            instance=instance,
            **self.more,
        )


CODES: dict[str, tuple[int, str]] = {
    "malformed": (400, "This is not HTTP"),
    "unauthenticated": (401, "No valid token"),
    "forbidden": (403, "Your role does not allow this"),
    "csrf": (403, "The request does not come from the console"),
    "separation_of_duty": (403, "Somebody else has to do this"),
    "policy_refused": (403, "The policy of the data does not allow this"),
    "not_found": (404, "This does not exist, or you may not see it"),
    "method_not_allowed": (405, "The resource does not do this"),
    "too_slow": (408, "The request came too slowly"),
    "conflict": (409, "It contradicts what is there"),
    "fenced": (409, "Another worker holds the job"),
    "lease_held": (409, "Another worker holds the job"),
    "source_taken": (409, "The data are under another budget"),
    "idempotency_mismatch": (409, "The key was used for another request"),
    "budget_exceeded": (409, "The budget has no room"),
    "not_ready": (409, "It is not ready yet"),
    "expired": (410, "It has expired"),
    "precondition_failed": (412, "It has changed since you read it"),
    "too_large": (413, "The request is too large"),
    "target_too_long": (414, "The request line is too long"),
    "unsupported_media_type": (415, "The body is of another kind"),
    "range_not_satisfiable": (416, "The file is shorter"),
    "invalid": (422, "The request is not valid"),
    "file_refused": (422, "This file does not leave the worker"),
    "idempotency_key_missing": (428, "An Idempotency-Key is needed"),
    "precondition_missing": (428, "Say which version you have read"),
    "too_many_requests": (429, "Too many attempts"),
    "headers_too_large": (431, "The header is too large"),
    "internal": (500, "The gateway failed"),
    "ledger_tampered": (503, "The ledger is not as it was written"),
    "unavailable": (503, "The gateway cannot answer now"),
}
"""Stable codes, their HTTP status, and what they mean."""

REMEDIES: dict[str, str] = {
    "malformed": "Send HTTP/1.1 to this port; a TLS client needs the proxy's address.",
    "unauthenticated": "Sign in, or send a token that is valid as `Authorization: Bearer ...`.",
    "forbidden": "Ask an administrator for the role, or use a token with this permission.",
    "csrf": "Load the page again and send the form from it.",
    "separation_of_duty": "Ask another person: nobody decides about their own request.",
    "policy_refused": "Ask for what the policy allows, or its owner for other terms.",
    "not_found": "Check the address or the name, or ask its owner for access.",
    "method_not_allowed": "Use a method that `Allow` names.",
    "too_slow": "Send the request without long pauses; look at the network in between.",
    "conflict": "Read it again, then decide anew.",
    "fenced": "Nothing: the other worker goes on.",
    "lease_held": "Nothing: the lease runs out by itself.",
    "source_taken": "Ask an administrator under which budget these data are.",
    "idempotency_mismatch": "Use a new Idempotency-Key for a new request.",
    "budget_exceeded": "Ask for a smaller epsilon, or for a larger grant or budget.",
    "not_ready": "Wait until its state says that it is ready.",
    "expired": "Ask for a new one.",
    "precondition_failed": "Read it again and repeat the change on what is there now.",
    "too_large": "Send less, or have the limit raised in the settings.",
    "target_too_long": "Send long values in the body.",
    "unsupported_media_type": "Send JSON, with `Content-Type: application/json`.",
    "range_not_satisfiable": "Ask for a range within the file.",
    "invalid": "Correct the field that the detail names.",
    "file_refused": "Nothing: the file is not on the list of what may leave.",
    "idempotency_key_missing": "Send a header `Idempotency-Key` with a new value for each request.",
    "precondition_missing": "Send the version that you have read in `If-Match`.",
    "too_many_requests": "Wait as long as `Retry-After` says.",
    "headers_too_large": "Send fewer or shorter header fields.",
    "internal": "Give the incident's number to whoever runs the gateway; its log has the cause.",
    "ledger_tampered": "Have an auditor compare the ledger with an anchor; spend nothing before.",
    "unavailable": "Ask again in a while; `taciturn serve --check` says what is away.",
}
"""What to do about each of them, for the reference and for people at the console."""

_OF_ERRORS: tuple[tuple[type[Exception], str], ...] = (
    (errors.BudgetExceededError, "budget_exceeded"),
    (errors.UnknownEntryError, "not_found"),
    (errors.FencedError, "fenced"),
    (errors.LeaseHeldError, "lease_held"),
    (errors.LedgerConflictError, "conflict"),
    (errors.LedgerTamperedError, "ledger_tampered"),
    (errors.DatabaseUnavailableError, "unavailable"),
    (errors.SpecError, "invalid"),
    (errors.DataError, "invalid"),
)


def from_error(error: errors.TaciturnError) -> ProblemError | None:
    """The problem that an error of taciturn's own is; None if it is the gateway's fault."""
    for kind, code in _OF_ERRORS:
        if isinstance(error, kind):
            return ProblemError(code, str(error))
    return None
