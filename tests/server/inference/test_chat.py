"""A conversation becomes a prompt by the model's own template, or in plain words."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from taciturn.server.inference.chat import PLAIN_STOP, Chats
from taciturn.server.models.artifacts import Artifacts
from taciturn.server.problems import ProblemError
from taciturn.wire.openai import Message

TALK = (Message(role="system", content="Be brief."), Message(role="user", content="Hello?"))
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass
class Files:
    """A model's."""

    files: dict[str, Any] = field(default_factory=dict)

    def read(self, job_id: str, name: str) -> bytes | None:
        found = self.files.get(name)
        return found if found is None or isinstance(found, bytes) else json.dumps(found).encode()


def _chats(**files: Any) -> Chats:
    names = {"config": "tokenizer_config.json", "template": "chat_template.jinja"}
    found = Files({names[name]: content for name, content in files.items()})
    return Chats(cast(Artifacts, found))


def test_plain() -> None:
    found = _chats().prompt("job", TALK)
    assert found.text == "System: Be brief.\n\nUser: Hello?\n\nAssistant:"
    assert found.stops == (PLAIN_STOP,)


@pytest.mark.parametrize(
    "files",
    [
        {"config": {"chat_template": TEMPLATE, "bos_token": {"content": "<s>"}}},
        {"config": {"bos_token": "<s>"}, "template": TEMPLATE.encode()},
    ],
)
def test_the_models_own_template(files: dict[str, Any]) -> None:
    """With its first token: the worker puts none before a prompt that brings one."""
    found = _chats(**files).prompt("job", TALK)
    assert found.text == "<s><system>Be brief.\n<user>Hello?\n<assistant>"
    assert found.stops == ()


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
        "{{ 1 / 0 }}",
        "{% for i in range(99999999) %}x{% endfor %}",
        "{{ 'x' * 2000000 }}",
        "{{",
    ],
)
def test_a_template_can_refuse_and_no_more(template: str) -> None:
    with pytest.raises(ProblemError) as refused:
        _chats(template=template.encode()).prompt("job", TALK)
    assert refused.value.code == "invalid"
