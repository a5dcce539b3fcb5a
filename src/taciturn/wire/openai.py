"""Requests of OpenAI's completions API, as far as a fitted model can serve them.

What is not here, or has another value than its neutral one, is refused by name: a setting that is
silently ignored would make the answer something else than was asked for.

`MODEL:base` names the base of a fitted model, as it was before the fit: what the fitted one is
compared with. Log-probabilities are given to whoever may use the model. Of a model with a guarantee
they are post-processing; of one without they tell what its files tell, which the same people have.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from taciturn.spec import NOT_TINY, Seed, TopP
from taciturn.wire.jobs import MOST_SCORED
from taciturn.wire.values import WireValue

Prompt = Annotated[str, Field(max_length=100_000)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "user": (),
}
"""Parameters that are known and not supported, and the values with which they ask for nothing;
`user` may say anything, for the gateway knows who asks. A request that has one of them as a field
supports it."""

BASE = ":base"
"""Follows a fitted model's id, and means its base."""


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    include_usage: bool | None = False


class Sampling(BaseModel):
    """Fields of both kinds of requests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[
        str,
        Field(
            max_length=100,
            description="Id of a fitted model; with `:base` after it, its base.",
            examples=["model_4k2..."],
        ),
    ]
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2), NOT_TINY] | None = None
    top_p: TopP | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[tuple[Stop, ...], Field(max_length=4)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, fields: Any) -> Any:
        """Drop what asks for nothing; refuse the rest by name."""
        if not isinstance(fields, dict):
            return fields
        neutral = {
            name: values for name, values in _NEUTRAL.items() if name not in cls.model_fields
        }
        for name, values in neutral.items():
            if name in fields and values and fields[name] not in values:
                raise ValueError(f"{name} is not supported; leave it out")
        return {name: value for name, value in fields.items() if name not in neutral}

    @property
    def model_id(self) -> str:
        """Id of the fitted model."""
        return self.model.removesuffix(BASE)

    @property
    def of_base(self) -> bool:
        """True if the fitted model's base is asked."""
        return self.model.endswith(BASE)

    @property
    def likeliest(self) -> int | None:
        """Number of likeliest tokens to name at each place; None: no token is scored."""
        return None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts before which the answer ends."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else self.stop


class CompletionRequest(Sampling):
    """`POST /completions`."""

    prompt: Prompt | Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=100)]
    max_tokens: Annotated[int, Field(ge=0, le=100_000)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = False

    @field_validator("logprobs", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        return None if value is False else value

    @model_validator(mode="after")
    def _one_stream(self) -> Self:
        if self.stream and (len(self.prompts) > 1 or (self.n or 1) > 1):
            raise ValueError("stream: give one prompt and n=1, or leave stream out")
        return self

    @model_validator(mode="after")
    def _scores(self) -> Self:
        if self.stream and (self.echo or self.logprobs is not None):
            raise ValueError("stream: echo and logprobs come with whole texts; leave stream out")
        if self.max_tokens == 0 and not (self.echo and self.logprobs is not None):
            raise ValueError(
                "max_tokens: 0 writes nothing; give echo=true and logprobs, to score the prompt"
            )
        texts = len(self.prompts) * (self.n or 1)
        if self.logprobs is not None and texts > MOST_SCORED:
            raise ValueError(
                f"logprobs: of {texts} texts, and {MOST_SCORED} is the most; ask for fewer at once"
            )
        return self

    @property
    def likeliest(self) -> int | None:
        """Number of likeliest tokens to name at each place; None: no token is scored."""
        return self.logprobs

    @property
    def prompts(self) -> tuple[str, ...]:
        """All of them."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @property
    def limit_tokens(self) -> int | None:
        """Most tokens of one text, if the request has a bound."""
        return self.max_tokens


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["text"]
    text: Prompt


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Prompt | tuple[TextPart, ...]
    name: Annotated[str, Field(max_length=100)] | None = None

    @field_validator("content")
    @classmethod
    def _one_text(cls, content: str | tuple[TextPart, ...]) -> str:
        if isinstance(content, str):
            return content
        return "".join(part.text for part in content)

    @property
    def text(self) -> str:
        """Text of the message."""
        return str(self.content)


class ChatRequest(Sampling):
    """`POST /chat/completions`."""

    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=200)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _one_stream(self) -> Self:
        if self.stream and (self.n or 1) > 1:
            raise ValueError("stream: n must be 1")
        if self.stream and self.logprobs:
            raise ValueError("logprobs: come with whole answers; leave stream out")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: give logprobs=true, too")
        return self

    @property
    def likeliest(self) -> int | None:
        """Number of likeliest tokens to name at each place; None: no token is scored."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit_tokens(self) -> int | None:
        """Most tokens of one answer, if the request has a bound."""
        return self.max_completion_tokens or self.max_tokens


class ErrorDetail(WireValue):
    """Error as OpenAI's clients read it; `code` is this gateway's."""

    message: str
    type: str
    param: str | None = None
    code: str


class OpenAIError(WireValue):
    """An error in OpenAI's shape."""

    error: ErrorDetail
