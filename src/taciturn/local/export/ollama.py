"""A Modelfile: what Ollama has to know beside a GGUF file.

Ollama's templates are Go's, and a tokenizer's are Jinja's. One is derived from the other where each
turn is written in the same words around its content; that is tried on conversations, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SIGNS = {"system": "sYsTeM", "user": "uSeR", "assistant": "aSsIsTaNt"}
_TRIALS = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"),
)
_CONTINUE = "{{ .Prompt }}"
_QUOTE = '"""'

Render = Callable[[Sequence[Mapping[str, str]], bool], str]


@dataclass(frozen=True, slots=True)
class Turns:
    """Words around the content of each role's turn, and before the answer."""

    around: Mapping[str, tuple[str, str]]
    answer: str

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return a conversation, up to where the answer begins."""
        parts = [self.around.get(m["role"], ("", "")) for m in messages]
        texts = [
            before + message["content"] + after
            for message, (before, after) in zip(messages, parts, strict=True)
        ]
        return "".join(texts) + self.answer

    def go_template(self) -> str:
        """Return it as Ollama reads it."""
        branches = [
            f'{"if" if number == 0 else "else if"} eq .Role "{role}" }}}}{before}'
            f"{{{{ .Content }}}}{after}{{{{ "
            for number, (role, (before, after)) in enumerate(self.around.items())
        ]
        inner = "{{ " + "".join(branches) + "end }}"
        return "{{ range .Messages }}" + inner + "{{ end }}" + self.answer


def modelfile(
    file: str,
    tokenizer: Any,
    ends: Sequence[int],
    context_length: int,
    about: Mapping[str, str | float],
) -> tuple[str, list[str]]:
    """Return the Modelfile for a GGUF file beside it, and what whoever serves it has to know."""
    template, notes = _template(tokenizer)
    stops = [text for text in tokenizer.convert_ids_to_tokens(list(ends)) if text]
    statement = "\n".join(f"taciturn {name}: {value}" for name, value in about.items())
    lines = [
        *(f"# {line}" for line in statement.splitlines()),
        f"FROM ./{file}",
        *([] if template is None else [f"TEMPLATE {_QUOTE}{template}{_QUOTE}"]),
        *(f"PARAMETER stop {_quoted(text)}" for text in dict.fromkeys(stops)),
        f"PARAMETER num_ctx {context_length}",
        "PARAMETER repeat_penalty 1",  # its default, 1.1, would change what the model says
        f"LICENSE {_QUOTE}The licence of the base model applies. {_safe(statement)}{_QUOTE}",
    ]
    return "\n".join(lines) + "\n", notes


def _template(tokenizer: Any) -> tuple[str | None, list[str]]:
    if not tokenizer.chat_template:
        return _CONTINUE, []
    turns = turns_of(tokenizer)
    if turns is None:
        return None, [
            "the chat template cannot be written as Ollama's: the Modelfile has none, and Ollama "
            "takes the one it knows the model's by, or continues the text as it is"
        ]
    return turns.go_template(), []


def turns_of(tokenizer: Any) -> Turns | None:
    """Return the words around each turn, if the chat template writes every conversation so."""
    start = tokenizer.bos_token or ""

    def render(messages: Sequence[Mapping[str, str]], prompt: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=prompt
        )
        return text.removeprefix(start)  # added to every text, here and by Ollama

    try:
        turns = _taken_apart(render)
        if turns is None:
            return None
        for roles in _TRIALS:
            messages = [{"role": role, "content": f"text {n}"} for n, role in enumerate(roles)]
            if set(roles) <= set(turns.around) and render(messages, True) != turns.conversation(
                messages
            ):
                return None
    except Exception:  # a template of others raises what it likes
        return None
    writing = [*(text for pair in turns.around.values() for text in pair), turns.answer]
    return None if any(mark in text for text in writing for mark in ("{{", "}}", _QUOTE)) else turns


def _taken_apart(render: Render) -> Turns | None:
    messages = [{"role": role, "content": _SIGNS[role]} for role in ("user", "assistant", "user")]
    whole, asked_for = render(messages, False), render(messages, True)
    if not asked_for.startswith(whole):
        return None
    answer = asked_for[len(whole) :]
    user = _around(render(messages[:1], False), "user")
    if user is None:
        return None
    around = {"user": user}
    rest = whole.removeprefix(user[0] + _SIGNS["user"] + user[1])
    assistant = _around(rest[: len(rest) - len("".join(user)) - len(_SIGNS["user"])], "assistant")
    if assistant is None:
        return None
    around["assistant"] = assistant
    try:
        system = render([{"role": "system", "content": _SIGNS["system"]}, *messages[:1]], False)
    except Exception:  # a template of others raises what it likes: it has no system
        return Turns(around, answer)
    before_user = system.removesuffix(user[0] + _SIGNS["user"] + user[1])
    own = _around(before_user, "system")
    if own is None or before_user == system:
        return None
    return Turns({"system": own, **around}, answer)


def _around(text: str, role: str) -> tuple[str, str] | None:
    before, sign, after = text.partition(_SIGNS[role])
    return (before, after) if sign and _SIGNS[role] not in after else None


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _safe(text: str) -> str:
    return text.replace(_QUOTE, '"')
