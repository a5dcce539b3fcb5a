"""Webhooks are signed as Standard Webhooks has it, and go nowhere but where they may."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from typing import Any

import pytest

from support.receivers import Receiver, receiver
from taciturn.server.notifications import webhooks
from taciturn.server.notifications.mail import Outcome
from taciturn.server.notifications.messages import Message
from taciturn.server.problems import ProblemError

HERE = ("127.0.0.0/8",)
HOSTILE = "<script>alert(1)</script> [x](javascript:alert(1)) <!channel> \u202e"


def sent(hook: Receiver, keys: list[str], body: bytes = b"{}") -> Outcome:
    return webhooks.send(webhooks.target(hook.url, HERE), "dlv_1", keys, body, 1)


def test_the_vectors_of_the_specification() -> None:
    made = webhooks.signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_message_is_signed_with_each_secret(hook: Receiver) -> None:
    keys = [webhooks.new_secret(), webhooks.new_secret()]
    assert sent(hook, keys, b'{"a": 1}').success
    (arrival,) = hook.arrivals
    assert (arrival.path, arrival.body) == ("/hook?team=1", b'{"a": 1}')
    assert arrival.headers["webhook-id"] == "dlv_1"
    signatures = [webhooks.signature(key, "dlv_1", 1, b'{"a": 1}') for key in keys]
    assert arrival.headers["webhook-signature"].split(" ") == signatures
    assert arrival.headers["host"] == f"127.0.0.1:{hook.port}"


@pytest.mark.parametrize(
    ("status", "final"), [(302, False), (307, False), (500, False), (410, True)]
)
def test_what_is_no_success_is_none(hook: Receiver, status: int, final: bool) -> None:
    hook.answer = lambda arrival: status
    outcome = sent(hook, [webhooks.new_secret()])
    assert (outcome.success, outcome.final) == (False, final)
    assert str(status) in outcome.answer
    assert len(hook.arrivals) == 1, "nothing was asked for where it led"


def test_a_slow_receiver_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "TOTAL_S", 0.3)
    with receiver(lambda arrival: 3.0) as slow:
        begun = time.monotonic()
        outcome = sent(slow, [webhooks.new_secret()])
    assert outcome.answer == "it did not answer in time"
    assert time.monotonic() - begun < 5


def test_one_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then never lets a read time out."""
    monkeypatch.setattr(webhooks, "TOTAL_S", 0.5)

    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                for _ in range(100):
                    try:
                        client.sendall(b"H")
                    except OSError:
                        return
                    time.sleep(0.1)

        threading.Thread(target=serve, daemon=True).start()
        target = webhooks.target(f"http://127.0.0.1:{server.getsockname()[1]}/", HERE)
        begun = time.monotonic()
        assert not webhooks.send(target, "dlv_1", [webhooks.new_secret()], b"{}", 1).success
        assert time.monotonic() - begun < 3


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/", "https://localhost/", "https://169.254.169.254/latest/",
        "https://10.0.0.1/", "https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://0/",
        "https://2130706433/", "ftp://example.org/", "https://user:pw@example.org/",
        "https://example.org/#part", "https:///nothing", "javascript:alert(1)", "https://a b/",
        "https://exa\nmple.org/", "https://example.org:0/", "https://example.org:99999/",
    ],
)  # fmt: skip
def test_nothing_is_sent_to_addresses_that_are_not_public(url: str) -> None:
    with pytest.raises((ProblemError, OSError)):
        webhooks.target(url, ())


def test_http_is_for_allowed_networks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    with pytest.raises(ProblemError, match="https"):
        webhooks.target("http://example.org/", HERE)
    assert webhooks.target("https://example.org/", ()).address == "93.184.215.14"


def test_the_address_that_was_checked_is_used(
    hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads elsewhere a moment later leads nowhere."""
    target = webhooks.target(hook.url, HERE)

    def elsewhere(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was looked up again")

    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: (
            real(host, *rest, **more) if host == target.address else elsewhere()
        ),
    )
    assert webhooks.send(target, "dlv_1", [webhooks.new_secret()], b"{}", 1).success


def test_a_certificate_of_somebody_else_is_refused(hook: Receiver) -> None:
    target = webhooks.target(f"https://127.0.0.1:{hook.port}/", HERE)
    outcome = webhooks.send(target, "dlv_1", [webhooks.new_secret()], b"{}", 1)
    assert not outcome.success
    assert ssl.SSLError.__name__ in outcome.answer or "not answer" in outcome.answer
    assert hook.arrivals == []


@pytest.mark.parametrize("form", ["json", "teams"])
def test_names_are_no_markup(form: str) -> None:
    message = Message(HOSTILE, HOSTILE, "/jobs/1", {"dataset": HOSTILE})
    body = json.loads(
        webhooks.body_of(form, "dlv_1", "job.failed", 0, message, "https://t.example")
    )
    if form == "json":
        assert "<" not in body["text"]
        assert body["data"] == {"dataset": HOSTILE}
        assert body["timestamp"] == "1970-01-01T00:00:00+00:00"
        assert body["text"].endswith("https://t.example/jobs/1")
        return
    (attachment,) = body["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    kinds = {block["type"] for block in attachment["content"]["body"]}
    assert kinds == {"RichTextBlock"}, "a TextBlock would read names as Markdown"
    assert attachment["content"]["actions"][0]["url"] == "https://t.example/jobs/1"
