"""Every error that taciturn raises on purpose.

TaciturnError
├── SpecError                 an argument is outside its bound (also a ValueError)
│   ├── UnknownFieldError     an argument or YAML field that does not exist
│   └── PrivacyParameterError epsilon, delta, clip norm, batch size ... cannot give a guarantee
├── DataError                 the rows cannot be used as they are
│   ├── DataNotFoundError     the path, glob or URL leads to nothing
│   ├── MissingColumnError    a named column is not there
│   ├── RowError              empty, null or non-text rows; a unit column with nulls
│   └── PreparationError      `select` or `privacy_unit` is not a row-wise SQL expression
├── ModelError                the model cannot be used as it is
│   ├── ModelNotFoundError    no such path, hub id, or no network to reach the hub
│   ├── UnsupportedLayerError a trainable parameter whose per-unit gradient is not known
│   └── AdapterError          a saved adapter that does not change the model it is for
├── TimeLimitError            a job has taken all the time that it may take
├── MemoryLimitError          a device has too little memory for a run (also a MemoryError)
├── MissingDependencyError    an optional package is needed (also an ImportError)
├── GuaranteeError            the kernel refuses: going on would break the guarantee
├── CheckpointError           a checkpoint is absent, damaged, or of another job
├── CertificateError          a certificate is refused, or there is nothing to certify
├── SigningKeyError           a signing key or trust store that cannot be used
├── CallbackError             a callback raised; the run ended in a whole state
├── ProcessError              another process of the same job failed or was lost
│   └── LostProcessError      it was lost: killed, or its machine went; run again to go on
├── DatabaseError             the server's database cannot be used
│   └── DatabaseUnavailableError it did not answer in time: what was asked may not have happened
├── LedgerError               the ledger refuses; nothing has changed
│   ├── BudgetExceededError   a budget or a grant has no room for it
│   ├── UnknownEntryError     no such namespace, grant or job
│   ├── LedgerConflictError   it contradicts what is already in the ledger
│   ├── FencedError           another worker has taken the job over, or it is closed
│   ├── LeaseHeldError        another worker holds the job
│   └── LedgerTamperedError   a row is not as the ledger wrote it
├── GatewayError              a gateway refused or did not answer; says its code, status, incident
│   ├── AuthenticationError     no token, or one that is not valid (any more)
│   ├── PermissionDeniedError   not for this person, or not for them alone
│   ├── NotThereError           there is no such thing, or not for this person
│   ├── ConflictError           it contradicts what is there
│   ├── RemoteBudgetError       no room in a budget (also a BudgetExceededError)
│   ├── InvalidRequestError     the request cannot be understood (also a SpecError)
│   ├── TooManyRequestsError    too many attempts
│   ├── UnavailableError        no answer: what was asked may or may not have happened
│   └── JobFailedError          a job has failed or was cancelled
└── OutputError               the output folder cannot be written; nothing half-written is left

Messages state the value seen, the bound and the remedy. They never quote a private row. The
reference is made of the docstrings here: a cause, and after "Remedy:" what to do.
"""

from __future__ import annotations

_MOST_CHARACTERS = 1600


class TaciturnError(Exception):
    """Root of the tree: catch this to catch everything taciturn raises on purpose.

    Remedy: read the message, which states it.

    A message that quotes a value of thousands of characters is shortened in its midst: bound and
    remedy stand at its end.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(
            *(_shortened(argument) if isinstance(argument, str) else argument for argument in args)
        )


def _shortened(message: str) -> str:
    if len(message) <= _MOST_CHARACTERS:
        return message
    half = _MOST_CHARACTERS // 2
    left_out = len(message) - 2 * half
    return f"{message[:half]} [... {left_out} characters ...] {message[-half:]}"


class SpecError(TaciturnError, ValueError):
    """An argument is outside its bound.

    Remedy: Give a value within the bound that the message states.
    """


class UnknownFieldError(SpecError):
    """An argument or a YAML field that does not exist.

    Remedy: Correct the spelling; the message names the nearest field. `--help` lists all of
    them.
    """


class PrivacyParameterError(SpecError):
    """Epsilon, delta, clip norm or batch size cannot give a guarantee.

    Remedy: Choose the value that the message proposes, or more units, a larger epsilon or fewer
    steps.
    """


class DataError(TaciturnError):
    """The rows cannot be used as they are.

    Remedy: Correct the data, or the arguments that say how they are read.
    """


class DataNotFoundError(DataError):
    """The path, glob or URL leads to nothing.

    Remedy: Check the path, and that the process may read it.
    """


class MissingColumnError(DataError):
    """A named column is not in the data.

    Remedy: Name one of the columns that the message lists, or make the column with `select`.
    """


class RowError(DataError):
    """Rows that are empty, null or not text, or a privacy unit that is null.

    Remedy: Correct the rows, or leave them out with `select` by a rule that does not depend on
    who they are about.
    """


class PreparationError(DataError):
    """`select` or `privacy_unit` is not a row-wise SQL expression.

    Remedy: Use expressions over the columns of one row: no aggregate, no window, no subquery,
    no table.
    """


class TimeLimitError(TaciturnError):
    """A job has taken all the time that it may take.

    Remedy: Plan less work, or have the policy's `job_hours` raised. What the job held is spent.
    """


class MemoryLimitError(TaciturnError, MemoryError):
    """A device has too little free memory for a microbatch of a run.

    A run never goes on with smaller microbatches by itself: that would show who was drawn.

    Remedy: End what else uses the device, or run again with --resume and a smaller
    microbatch_tokens, or with gradient_checkpointing=True.
    """


class ModelError(TaciturnError):
    """The model cannot be used as it is.

    Remedy: Choose another base model, or the option that the message names.
    """


class ModelNotFoundError(ModelError):
    """No such path, no such hub id, or no network to reach the hub.

    Remedy: Give a folder, a GGUF file or a hub id; without a network, a model that is already
    on this machine.
    """


class UnsupportedLayerError(ModelError):
    """A trainable parameter whose per-unit gradient is not known exactly.

    Remedy: Choose other `target_modules`, or `method="lora"`.
    """


class AdapterError(ModelError):
    """A saved adapter that does not change, or does not fit, the model it is for.

    Remedy: Open the adapter with the base that it was fitted on; choose other `target_modules`
    for a fit.
    """


class MissingDependencyError(TaciturnError, ImportError):
    """An optional package is needed and is not installed.

    Remedy: Install the extra that the message names, for example `pip install
    'taciturn[engine]'`.
    """


class GuaranteeError(TaciturnError):
    """The kernel refuses to go on: the guarantee would no longer be true.

    Remedy: Change what the message names; there is no way around it. Report it if you think
    that it is wrong.
    """


class CheckpointError(TaciturnError):
    """A checkpoint is absent, damaged, or belongs to another job.

    Remedy: Run without `--resume`, or with the arguments and data that the run was begun with.
    """


class CertificateError(TaciturnError):
    """A certificate is refused, with the reason, or there is nothing to certify.

    Remedy: Get the certificate and the files from their issuer again, or issue one for this
    folder.
    """


class SigningKeyError(TaciturnError):
    """A signing key or trust store that cannot be read or used.

    Remedy: Check the file, its password and the dates between which the key is valid.
    """


class CallbackError(TaciturnError):
    """A callback raised; what it raised is the cause. The run ended in a whole state.

    Remedy: Correct the callback, then go on with `--resume`.

    `result` is what an evaluation had come to, which was paid for; None after a fit.
    """

    def __init__(self, *args: object, result: object = None) -> None:
        super().__init__(*args)
        self.result = result


class ProcessError(TaciturnError):
    """Another process of the same job failed or was lost, so this one stops too.

    Remedy: Read the message of the process that failed first.
    """


class LostProcessError(ProcessError):
    """Another process of the same job was lost; nothing was wrong with the job itself.

    Remedy: Run again with `--resume`.
    """


class OutputError(TaciturnError):
    """The output folder cannot be written; nothing half-written is left behind.

    Remedy: Choose an empty or new folder on a disk with room, and run again.
    """


class DatabaseError(TaciturnError):
    """The server's database cannot be used.

    Remedy: Check the database's address, version and rights; `taciturn serve --check` names
    what is wrong.
    """


class DatabaseUnavailableError(DatabaseError):
    """The database did not answer in time: what was asked may or may not have happened.

    Remedy: Wait until the database answers, then look whether it was done before asking again.
    """


class LedgerError(TaciturnError):
    """The ledger refuses. Nothing has changed, and nothing may run.

    Remedy: Read which rule refused it; nothing has to be undone.
    """


class BudgetExceededError(LedgerError):
    """A namespace's budget, or a grant below it, has no room for what is asked.

    Remedy: Ask for less, or for a larger grant or budget.

    Attributes:
        grant: the grant that is too small; None where it is the namespace's budget.
    """

    def __init__(self, message: str, *, grant: str | None = None) -> None:
        super().__init__(message)
        self.grant = grant


class UnknownEntryError(LedgerError):
    """No such namespace, grant or job.

    Remedy: Check the name; list what there is.
    """


class LedgerConflictError(LedgerError):
    """The request contradicts what is already in the ledger.

    Remedy: Look at what is there, and ask for something that agrees with it.
    """


class FencedError(LedgerError):
    """A fencing token that is no longer valid: whoever holds it must stop.

    Remedy: Stop; another worker goes on with the job.
    """


class LeaseHeldError(LedgerError):
    """Another worker holds the job, and its lease has not run out.

    Remedy: Wait until the lease has run out.
    """


class LedgerTamperedError(LedgerError):
    """A row of the ledger is not as the ledger wrote it.

    Remedy: Stop spending, compare with an anchor, and restore the database from a backup that
    agrees with it.
    """


class GatewayError(TaciturnError):
    """A gateway refused, or could not be reached.

    Remedy: Follow the message; the code is in the table below.

    Attributes:
        detail: what was refused and what to do, in words.
        code: stable name of the reason, such as "budget_exceeded".
        status: of HTTP; None where no answer came.
        incident: under which the data's owner finds more.
    """

    def __init__(
        self,
        detail: str,
        *,
        code: str = "gateway",
        status: int | None = None,
        incident: str | None = None,
    ) -> None:
        super().__init__(detail if incident is None else f"{detail} (incident {incident})")
        self.detail, self.code, self.status, self.incident = detail, code, status, incident


class AuthenticationError(GatewayError):
    """No token was given, or it is not valid, or not any more.

    Remedy: Run `taciturn login`, or set `TACITURN_TOKEN` to a token that is valid.
    """


class PermissionDeniedError(GatewayError):
    """This person's role or token does not allow it, or somebody else has to do it.

    Remedy: Ask somebody who has the role, or an owner for a grant.
    """


class NotThereError(GatewayError):
    """No such thing exists, or this person may not know of it.

    Remedy: Check the name, and ask its owner for access.
    """


class ConflictError(GatewayError):
    """The request contradicts what is already there, or comes too early or too late.

    Remedy: Read the thing again, then decide anew.
    """


class RemoteBudgetError(GatewayError, BudgetExceededError):
    """A gateway's ledger has no room for what is asked; nothing was spent.

    Remedy: Ask for a smaller epsilon (`plan` says which would fit), or the owner for a larger
    grant.
    """


class InvalidRequestError(GatewayError, SpecError):
    """The gateway cannot take the request as it is.

    Remedy: Correct the field that the message names.
    """


class TooManyRequestsError(GatewayError):
    """Too many attempts; the gateway says when to try again.

    Remedy: Wait as long as `Retry-After` says.
    """


class UnavailableError(GatewayError):
    """The gateway did not answer: what was asked may or may not have happened.

    Remedy: Ask again; a request with the same Idempotency-Key is not done twice.
    """


class JobFailedError(GatewayError):
    """A job has failed or was cancelled.

    Remedy: Read the job's failure code; the data's owner finds more under its incident.

    Attributes:
        job: its id.
    """

    def __init__(self, detail: str, *, job: str, code: str, incident: str | None = None) -> None:
        super().__init__(detail, code=code, incident=incident)
        self.job = job
