"""What people see while they wait: steps, epsilon, time left; in terminals, notebooks and logs."""

from __future__ import annotations

import io

import pytest

from support.fake_gateway import NOW, FakeApi
from taciturn.sdk.client import Client
from taciturn.sdk.progress import LogScreen, NotebookScreen, Progress, duration, progress_card
from taciturn.wire.events import NodeEvent, NumberedEvent, StageEvent
from taciturn.wire.jobs import JobState


def told(fake: FakeApi, until: int) -> Progress:
    progress = Progress("job_1", "fit")
    for event in fake.events()[:until]:
        progress = progress.after(event)
    return progress


def test_steps_epsilon_and_time_left(fake: FakeApi) -> None:
    halfway = told(fake, 5)
    assert (halfway.completed, halfway.total, halfway.share) == (2, 4, 0.5)
    # One step each 10 s, two are left.
    assert halfway.seconds_left == 20
    assert halfway.words == "running, 2 of 4, epsilon 1.00 spent of 3 held, about 20 s left"
    assert told(fake, 1).words == "queued"
    done = told(fake, 8)
    assert (done.state, done.share, done.seconds_left) == (JobState.SUCCEEDED, 1.0, None)


def test_a_failure_and_a_machine_are_said(fake: FakeApi) -> None:
    fake.outcome = JobState.FAILED
    assert "ask the data's owner" in told(fake, 8).words
    progress = Progress("job_1", "fit", state=JobState.PROVISIONING)
    node = NodeEvent(code="node.pending", text="waiting for a node <b>")
    shown = progress.after(NumberedEvent(sequence=1, at=NOW, event=node))
    assert "waiting for a node" in shown.words
    assert "&lt;b&gt;" in progress_card(shown)
    stage = StageEvent(stage="reading")
    running = Progress("job_1", "fit", state=JobState.RUNNING)
    assert running.after(NumberedEvent(sequence=1, at=NOW, event=stage)).words == "reading"
    padded = NumberedEvent(sequence=1, at=NOW, event=StageEvent(stage="reading", padded_s=5))
    said = running.after(padded).words
    assert said == "reading (padded to 5 s, 10 s, 20 s ..., so that its length tells nothing)"


def test_without_privacy_no_epsilon_is_shown() -> None:
    progress = Progress("job_1", "fit", private=False, state=JobState.RUNNING, completed=1, total=2)
    assert progress.words == "running, 1 of 2, no privacy"
    assert "t-open" in progress_card(progress).partition("</style>")[2]


def test_a_log_gets_a_line_for_what_is_new(fake: FakeApi) -> None:
    file = io.StringIO()
    screen = LogScreen(file)
    for _ in range(2):
        screen.show(told(fake, 5))
    assert file.getvalue().count("\n") == 1


def test_a_terminal_gets_a_bar(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr", shown)
    client.dataset("phee").fit("m", target_epsilon=3).wait()
    assert "epsilon 2.00 spent of 3 held" in shown.getvalue()


def test_a_notebook_gets_one_card_that_changes(
    fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    display = pytest.importorskip("IPython.display")
    cards: list[str] = []

    class Handle:
        def update(self, html: object) -> None:
            cards.append(html.data)  # type: ignore[attr-defined]

    def first(html: object, *, display_id: bool) -> Handle:
        cards.append(html.data)  # type: ignore[attr-defined]
        return Handle()

    monkeypatch.setattr(display, "display", first)
    screen = NotebookScreen(clock=iter([0.0, 1.0, 30.0]).__next__)
    screen.show(told(fake, 1))
    screen.show(told(fake, 5))
    assert "width:50.00%" in cards[1]
    assert "30 s" in cards[1]


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (200, "3 min"), (7200, "2.0 h")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
