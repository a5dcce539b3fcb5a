"""E-mail through a real SMTP server, with STARTTLS and a password."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from support.receivers import Mailbox, free_port, mail_server, write_certificate
from support.told import mail_settings
from taciturn.server import preflight
from taciturn.server.notifications import mail
from taciturn.server.notifications.messages import Message
from taciturn.server.settings import Settings

MESSAGE = Message("A job is done", "The job is done.", "/jobs/job_1")


def settings(port: int, **changes: Any) -> Settings:
    return Settings(**{**mail_settings(port), **changes})


def sent(
    own: Settings, message: Message = MESSAGE, to: str = "ada@hospital.example"
) -> mail.Outcome:
    return mail.send(own, mail.letter(own, "dlv_1", to, message, "https://tac.example"))


def test_a_letter_arrives(mailbox: Mailbox) -> None:
    assert sent(settings(mailbox.port)).success
    (letter,) = mailbox.letters
    assert (letter["To"], letter["From"]) == ("ada@hospital.example", "taciturn@hospital.example")
    assert letter["Subject"] == "[taciturn] A job is done"
    assert letter["Message-ID"] == "<dlv_1@hospital.example>"
    assert letter["Auto-Submitted"] == "auto-generated"
    assert letter.get_content_type() == "text/plain"
    assert "https://tac.example/jobs/job_1\n" in letter.get_content().replace("\r\n", "\n")


@pytest.mark.parametrize(
    "name",
    ["x\r\nBcc: eve@evil.example", "x\nX-Evil: 1", "\x00\x0b\u2028Bcc: e@e.example", "é" * 900],
)
def test_no_name_adds_a_header(mailbox: Mailbox, name: str) -> None:
    assert sent(settings(mailbox.port), Message(name, "Text.", "/")).success
    (letter,) = mailbox.letters
    assert letter["Bcc"] is None
    assert letter["X-Evil"] is None
    assert letter.get_content().startswith("Text.")


def test_a_refused_recipient_is_final_and_a_busy_one_is_not(mailbox: Mailbox) -> None:
    mailbox.refused = {"a@b.example": "550 no such user", "c@d.example": "451 later"}
    gone, later = (sent(settings(mailbox.port), to=to) for to in mailbox.refused)
    assert (gone.success, gone.final, "550" in gone.answer) == (False, True, True)
    assert (later.success, later.final) == (False, False)
    assert "no such user" not in gone.answer, "a server's words are nobody's business"


def test_a_server_that_is_away_or_a_wrong_password_is_no_end(mailbox: Mailbox) -> None:
    away = sent(settings(free_port()))
    assert (away.success, away.final) == (False, False)
    wrong = sent(settings(mailbox.port, smtp_password="guess"))
    assert (wrong.success, wrong.final) == (False, False)
    assert mailbox.letters == []


def test_a_certificate_that_is_not_trusted_gets_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.pem"
    write_certificate(other, tmp_path / "other.key")
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    with mail_server(tmp_path) as mailbox:
        outcome = sent(settings(mailbox.port))
        assert (outcome.success, mailbox.letters) == (False, [])
        assert "SSLCertVerificationError" in outcome.answer


def test_the_password_may_be_in_a_file(mailbox: Mailbox, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("mail secret\n", encoding="utf-8")
    assert sent(settings(mailbox.port, smtp_password=None, smtp_password_file=path)).success


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"smtp_sender": None}, "TACITURN_SMTP_SENDER"),
        ({"smtp_password": None}, "0 passwords"),
        ({"smtp_password_file": "x"}, "2 passwords"),
        ({"smtp_user": None}, "1 passwords"),
        ({"smtp_tls": "none"}, "in the clear"),
        ({"smtp_sender": "a@b.example\r\nBcc: c@d.example"}, "pattern"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_the_start(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        settings(25, **changes)


def test_the_check_says_what_is_wrong(mailbox: Mailbox, tmp_path: Path) -> None:
    def finding(own: Settings) -> preflight.Finding:
        (found,) = (line for line in preflight.check(own) if line.what == "mail")
        return found

    assert finding(settings(mailbox.port, data_dir=tmp_path)).fine
    assert "TACITURN_SMTP_HOST" in finding(settings(free_port(), data_dir=tmp_path)).remedy
    assert mailbox.letters == []
