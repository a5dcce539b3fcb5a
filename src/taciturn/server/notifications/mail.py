"""E-mail through the SMTP server of the settings."""

from __future__ import annotations

import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate
from pathlib import Path

from taciturn.server.notifications.messages import SETTINGS_PAGE, Message, plain
from taciturn.server.settings import Settings

TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one attempt.

    Attributes:
        answer: in our words; nothing that a receiver said is kept or shown.
        final: trying again would change nothing.
    """

    success: bool
    answer: str
    final: bool = False


def letter(
    settings: Settings, delivery_id: str, to: str, message: Message, url: str
) -> EmailMessage:
    """Return an e-mail in plain text. Its Message-ID is the same whenever it is sent again."""
    sender = settings.smtp_sender or ""
    mail = EmailMessage()
    mail["From"], mail["To"] = sender, to
    mail["Subject"] = plain(f"[taciturn] {message.title}")
    mail["Date"] = formatdate(usegmt=True)
    mail["Message-ID"] = f"<{delivery_id}@{sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(
        f"{message.text}\n\n{url}{message.path}\n\n"
        f"-- \nChoose what you are told: {url}{SETTINGS_PAGE}\n",
        charset="utf-8",
    )
    return mail


def send(settings: Settings, mail: EmailMessage) -> Outcome:
    """Send an e-mail, once."""
    try:
        with connect(settings) as server:
            server.send_message(mail)
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        final = all(code >= 500 for code in codes)
        return Outcome(False, f"the mail server refuses the address ({codes[0]})", final)
    except smtplib.SMTPResponseException as error:
        return Outcome(False, f"the mail server refuses ({error.smtp_code})")
    except (OSError, smtplib.SMTPException) as error:
        return Outcome(False, f"the mail server is away ({type(error).__name__})")
    return Outcome(True, "the mail server has taken it")


def connect(settings: Settings) -> smtplib.SMTP:
    """Return a connection to the mail server, logged in where the settings name a user.

    Raises OSError or SMTPException where it is away, shows no certificate that is trusted here, or
    refuses the user.
    """
    host, port = settings.smtp_host or "", settings.smtp_port
    context = ssl.create_default_context()
    server: smtplib.SMTP
    if settings.smtp_tls == "tls":
        server = smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_S, context=context)
    else:
        server = smtplib.SMTP(host, port, timeout=TIMEOUT_S)
    try:
        if settings.smtp_tls == "starttls":
            server.starttls(context=context)
        if settings.smtp_user is not None:
            server.login(settings.smtp_user, password(settings))
    except BaseException:
        server.close()
        raise
    return server


def password(settings: Settings) -> str:
    """Return the password of the mail server's user."""
    if settings.smtp_password is not None:
        return settings.smtp_password.get_secret_value()
    return Path(settings.smtp_password_file or "").read_text(encoding="utf-8").strip()
