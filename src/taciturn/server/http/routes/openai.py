"""OpenAI's completions API for fitted models, so that existing clients work unchanged.

At `/v1/completions` and `/v1/chat/completions`; with the list of models, which has another shape
at `/v1/models`, also under `/openai/v1`: `OpenAI(base_url="https://GATEWAY/openai/v1")`. Every
answer carries the model's policy, in the header `Taciturn-Policy` and the field `taciturn`. Tokens
are those that the model has written, also where a stop cut them off. `MODEL:base` is the base of a
fitted model; `text_offset` of log-probabilities counts from the beginning of the answer's `text`.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from itertools import accumulate
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from taciturn.errors import TaciturnError
from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.http.sending import EventStream, policy_header
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.inference.stop_sequences import Stopper, cut
from taciturn.server.paging import MAX_LIMIT, Paging
from taciturn.server.problems import CODES, ProblemError, from_error
from taciturn.server.services import Services
from taciturn.wire.jobs import JobView, ModelView, RemoteSample
from taciturn.wire.openai import ChatRequest, CompletionRequest, Sampling
from taciturn.wire.results import SampleLine


class OpenAIRoute(Route):
    """A route whose errors have OpenAI's shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The ordinary handler, with its errors translated."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except ProblemError as error:
                return _error(request, error, error.more.get("param"))
            except HTTPException as error:  # a body that is too long, or that is no form
                code = "too_large" if error.status_code == 413 else "invalid"
                return _error(request, ProblemError(code, str(error.detail)), None)
            except RequestValidationError as error:
                first = error.errors()[0]
                message = first["msg"].removeprefix("Value error, ")
                where = ".".join(str(part) for part in first["loc"][1:]) or None
                detail = f"{where}: {message}" if where else message
                return _error(request, ProblemError("invalid", detail), where)
            except TaciturnError as error:
                problem = from_error(error)
                if problem is None:
                    raise
                return _error(request, problem, None)

        return handle


router = APIRouter(tags=["OpenAI"], route_class=OpenAIRoute)
listing = APIRouter(tags=["OpenAI"], route_class=OpenAIRoute)
"""Only under /openai/v1."""

User = Annotated[Principal, Depends(Requires(Action.MODELS_USE))]
Reader = Annotated[Principal, Depends(Requires(Action.MODELS_READ))]

_COMPLETION_TOKENS = 16  # OpenAI's own default
_ANSWER_TOKENS = 256  # of a chat; OpenAI has no default

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
    503: "server_error",
}


def is_openai(request: Request) -> bool:
    """Return True if one of OpenAI's own clients sent this."""
    return "x-stainless-lang" in request.headers


def model_list(models: Iterable[ModelView]) -> dict[str, Any]:
    """Models in OpenAI's shape."""
    return {"object": "list", "data": [_model(model) for model in models]}


@listing.get("/models", operation_id="openai_list_models")
def list_models(caller: Reader, services: Svc) -> dict[str, Any]:
    """The models that you may know of."""
    items: list[ModelView] = []
    page = services.models.list(caller, Paging(MAX_LIMIT))
    while True:
        items += page.items
        if page.next_cursor is None:
            return model_list(items)
        page = services.models.list(caller, Paging(MAX_LIMIT, items[-1].id))


@listing.get("/models/{model_id}", operation_id="openai_read_model")
def read_model(model_id: str, caller: Reader, services: Svc) -> dict[str, Any]:
    """One of them."""
    return _model(services.models.get(caller, model_id))


@router.post("/completions", response_model=None)
async def complete(
    http: Request, request_body: CompletionRequest, caller: User, services: Svc
) -> Response:
    """Continue one or several texts; with `logprobs`, say how likely each token is."""
    model = await to_thread.run_sync(services.models.usable, caller, request_body.model_id)
    shape = _Completion(request_body.model, bool(request_body.echo))
    limit = request_body.limit_tokens
    limit = _default(model, _COMPLETION_TOKENS) if limit is None else limit
    echo = bool(request_body.echo) and request_body.logprobs is not None
    request = _sample(request_body, request_body.prompts, limit, echo)
    return await _answer(http, services, caller, request, shape, request_body, request_body.stops)


@router.post("/chat/completions", response_model=None)
async def chat(http: Request, request_body: ChatRequest, caller: User, services: Svc) -> Response:
    """Answer in a conversation: by the model's own chat template, or, where it has none, after
    `System:`, `User:` and `Assistant:`."""
    model = await to_thread.run_sync(services.models.usable, caller, request_body.model_id)
    prompt = await to_thread.run_sync(services.chats.prompt, model.job, request_body.messages)
    limit = request_body.limit_tokens or _default(model, _ANSWER_TOKENS)
    request = _sample(request_body, [prompt.text], limit)
    stops = (*request_body.stops, *prompt.stops)
    shape = _Chat(request_body.model)
    return await _answer(http, services, caller, request, shape, request_body, stops)


class _Shape:
    """Form of the answers. A line's text is cut already, and its scores with it."""

    kind: str
    chunk_kind: str

    def __init__(self, model: str) -> None:
        self.model = model
        self.created = int(time.time())

    def frame(self, job: JobView, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": job.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "taciturn": {"policy": job.policy.model_dump(), "job": job.id},
        }

    def choice(self, line: SampleLine) -> dict[str, Any]:
        raise NotImplementedError

    def delta(self, text: str, first: bool, finish: str | None) -> dict[str, Any]:
        raise NotImplementedError


class _Completion(_Shape):
    kind = chunk_kind = "text_completion"

    def __init__(self, model: str, echo: bool) -> None:
        super().__init__(model)
        self.echo = echo

    def choice(self, line: SampleLine) -> dict[str, Any]:
        text = line.prompt + line.text if self.echo else line.text
        return {"text": text, "logprobs": self._logprobs(line)}

    def _logprobs(self, line: SampleLine) -> dict[str, Any] | None:
        if line.scores is None:
            return None
        scores = [*(line.prompt_scores or ()), *line.scores]
        lengths = [0 if score.special else len(score.text) for score in scores]
        likeliest = [dict(score.likeliest) or None for score in scores]
        return {
            "tokens": [score.text for score in scores],
            "token_logprobs": [score.log_probability for score in scores],
            "top_logprobs": likeliest if any(likeliest) else None,
            "text_offset": [0, *accumulate(lengths)][: len(scores)],
        }

    def delta(self, text: str, first: bool, finish: str | None) -> dict[str, Any]:
        return {"text": text}


class _Chat(_Shape):
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def choice(self, line: SampleLine) -> dict[str, Any]:
        text = line.text.removeprefix(" ")
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(line)}

    def _logprobs(self, line: SampleLine) -> dict[str, Any] | None:
        if line.scores is None:
            return None
        content = [
            {
                **_token(score.text, score.log_probability),
                "top_logprobs": [_token(text, value) for text, value in score.likeliest],
            }
            for score in line.scores
        ]
        return {"content": content, "refusal": None}

    def delta(self, text: str, first: bool, finish: str | None) -> dict[str, Any]:
        if first:
            return {"delta": {"role": "assistant", "content": text.removeprefix(" ")}}
        return {"delta": {"content": text} if text else {}}


def _token(text: str, log_probability: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": log_probability, "bytes": list(text.encode())}


def _cut(line: SampleLine, stops: Sequence[str]) -> tuple[SampleLine, bool]:
    """Return a line up to the first stop, its scores too, and whether there was one."""
    text, stopped = cut(line.text, stops)
    update: dict[str, Any] = {"text": text}
    if stopped and line.scores is not None:
        ends = accumulate(0 if score.special else len(score.text) for score in line.scores)
        count = sum(end <= len(text) for end in ends)
        update["scores"] = line.scores[:count]
    return line.model_copy(update=update), stopped


def _default(model: ModelView, tokens: int) -> int:
    """Return this many tokens, or half of the model's context where that is less."""
    return tokens if model.context_length is None else min(tokens, model.context_length // 2)


def _sample(
    request_body: Sampling, prompts: Sequence[str], limit_tokens: int, echo: bool = False
) -> RemoteSample:
    return RemoteSample(
        model=request_body.model_id,
        base=request_body.of_base,
        logprobs=request_body.likeliest,
        echo=echo,
        prompts=tuple(prompts),
        stream=bool(request_body.stream),
        temperature=1.0 if request_body.temperature is None else request_body.temperature,
        top_p=request_body.top_p or 1.0,
        writes=limit_tokens > 0,
        max_new_tokens=max(1, limit_tokens),
        n=request_body.n or 1,
        seed=request_body.seed,
    )


async def _answer(
    http: Request,
    services: Services,
    caller: Principal,
    request: RemoteSample,
    shape: _Shape,
    request_body: Sampling,
    stops: Sequence[str],
) -> Response:
    job = await services.completions.ask(caller, request)
    headers = policy_header(job.policy)
    if request_body.stream:
        usage = bool(request_body.stream_options and request_body.stream_options.include_usage)
        body = _chunks(services, caller, job, shape, stops, usage)
        return EventStream(body, headers={**headers, "Cache-Control": "no-store"})
    lines = await services.completions.whole(caller, job, http.is_disconnected)
    choices = []
    for index, line in enumerate(lines):
        whole, stopped = _cut(line, stops)
        finish = "stop" if stopped else line.finish_reason
        choices.append({"index": index, **shape.choice(whole), "finish_reason": finish})
    answer = {**shape.frame(job, shape.kind, choices), "usage": _usage(lines, request.n)}
    return JSONResponse(answer, headers=headers)


async def _chunks(
    services: Services,
    caller: Principal,
    job: JobView,
    shape: _Shape,
    stops: Sequence[str],
    with_usage: bool,
) -> AsyncIterator[bytes]:
    stopper, first, line = Stopper(stops), True, SampleLine(prompt="", text="")
    try:
        async for piece in services.completions.pieces(caller, job):
            line = piece.whole or line
            text = stopper.feed(piece.text) + ("" if piece.whole is None else stopper.end())
            finish = None
            if piece.whole is not None:
                finish = "stop" if stopper.stopped else line.finish_reason
            if text or first or finish:
                choice = {"index": 0, **shape.delta(text, first, finish)}
                choice |= {"logprobs": None, "finish_reason": finish}
                yield _data(shape.frame(job, shape.chunk_kind, [choice]))
                first = False
    except ProblemError as error:
        yield _data(_error_body(error, None))
        return
    if with_usage:
        frame = shape.frame(job, shape.chunk_kind, [])
        yield _data({**frame, "usage": _usage([line], 1)})
    yield b"data: [DONE]\n\n"


def _usage(lines: Sequence[SampleLine], n: int) -> dict[str, int]:
    """Tokens of each prompt once, and all that were written."""
    prompt_tokens = sum(line.prompt_tokens for line in lines[::n])
    completion_tokens = sum(line.tokens for line in lines)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _data(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def _model(model: ModelView) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": int(model.created_at.timestamp()),
        "owned_by": model.owner,
        "taciturn": {"policy": model.policy.model_dump(), "name": model.name},
    }


def _error(request: Request, error: ProblemError, parameter: str | None) -> Response:
    request.state.code = error.code
    status, _ = CODES[error.code]
    return JSONResponse(
        _error_body(error, parameter),
        status_code=400 if status == 422 else status,
        headers=error.headers,
    )


def _error_body(error: ProblemError, parameter: str | None) -> dict[str, Any]:
    status, _ = CODES[error.code]
    return {
        "error": {
            "message": error.detail,
            "type": _TYPES.get(status, "invalid_request_error"),
            "param": parameter,
            "code": error.code,
        }
    }
