"""The command line: the same calls as the SDK, with progress on the screen."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `taciturn`; the reference page is made of their meanings."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> ExitCode:
        """Return the code with its meaning."""
        member = int.__new__(cls, code)
        member._value_, member.meaning = code, meaning
        return member

    DONE = 0, "It was done, and what was checked is in order."
    REFUSED = 1, "It was refused or failed, or what was checked is not in order; the message says."
    USAGE = 2, "The command line cannot be understood; nothing was begun."
    VERDICT = (
        3,
        "It was done, and the verdict needs your eyes: `taciturn audit` refuted the guarantee, or "
        "`taciturn cert verify` found a certificate that holds on an export that nobody signed.",
    )
    INTERRUPTED = 130, "Ctrl-C. A fit leaves a checkpoint, and `--resume` goes on."
