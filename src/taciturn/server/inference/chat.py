"""A conversation as one prompt: by the model's own chat template, or as plain text.

The template is a file of the model, run in Jinja's sandbox without any of our objects in it. A
model without one gets, for each message, its role, a colon and the text, then `Assistant:`; and
its answer ends before the next `User:`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from taciturn.server.models.artifacts import Artifacts
from taciturn.server.problems import ProblemError
from taciturn.wire.openai import Message

PLAIN_STOP = "\n\nUser:"
_LONGEST = 1_000_000
_TITLES = {
    "system": "System",
    "developer": "System",
    "user": "User",
    "assistant": "Assistant",
}


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Text that the model is to continue, and texts before which its answer ends."""

    text: str
    stops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chats:
    """Knows the models' templates."""

    artifacts: Artifacts

    def prompt(self, job_id: str, messages: Sequence[Message]) -> ChatPrompt:
        """The prompt for the model that this job has made.

        Raises:
            ProblemError: `invalid`, if the template refuses the conversation.
        """
        config, template = self._template(job_id)
        if template is None:
            return plain_prompt(messages)
        return _templated(template, messages, config)

    def is_templated(self, job_id: str) -> bool:
        """True if the model that this job has made knows a form of conversations."""
        return self._template(job_id)[1] is not None

    def _template(self, job_id: str) -> tuple[dict[str, object], str | None]:
        config = json.loads(self.artifacts.read(job_id, "tokenizer_config.json") or b"{}")
        data = self.artifacts.read(job_id, "chat_template.jinja")
        template = config.get("chat_template") if data is None else data.decode()
        return config, template if isinstance(template, str) else None


def plain_prompt(messages: Sequence[Message]) -> ChatPrompt:
    """A conversation for a model that knows no form of it."""
    turns = [f"{_TITLES[message.role]}: {message.text}" for message in messages]
    return ChatPrompt("\n\n".join([*turns, "Assistant:"]), (PLAIN_STOP,))


def _templated(template: str, messages: Sequence[Message], config: dict[str, object]) -> ChatPrompt:
    tokens = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "unk_token")}
    try:
        text = (
            _environment()
            .from_string(template)
            .render(
                messages=[{"role": m.role, "content": m.text} for m in messages],
                add_generation_prompt=True,
                **tokens,
            )
        )
    except Exception as error:  # it is somebody else's program
        raise ProblemError(
            "invalid", f"the model's chat template refuses this: {type(error).__name__}"
        ) from None
    if len(text) > _LONGEST:
        raise ProblemError("invalid", f"the conversation is longer than {_LONGEST} characters")
    return ChatPrompt(text)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return an environment like that of Transformers, for which templates are written."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
    return environment


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _content(token: object) -> str:
    """A special token, which tokenizers write as a text or as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
