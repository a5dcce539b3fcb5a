"""Templates of the console, filled; the headers of a page; problems as pages."""

from __future__ import annotations

import functools
import gzip
import hashlib
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.exceptions import HTTPException

from taciturn.errors import TaciturnError
from taciturn.server.http.access import services_of
from taciturn.server.http.blocking import Route
from taciturn.server.http.middleware import incident_problem
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.identity.secret import new_id
from taciturn.server.problems import ProblemError, from_error
from taciturn.server.services import Services
from taciturn.wire.jobs import JobKind, ModelView

_log = logging.getLogger("taciturn.requests")

FOLDER = Path(__file__).parent
STATIC = "/static"
SIGN_IN = "/sign-in"

_PLAIN_BYTES = 2_000
"""Answers up to this length are sent as they are."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


_TERMS = re.compile(
    r"DP \((?P<budget>budget )?epsilon=(?P<epsilon>[\d.e+-]+), delta=(?P<delta>[\d.e+-]+), "
    r"unit=(?P<unit>.*)\)",
    re.DOTALL,
)

_WAYS_ON = {
    401: "Sign in, and open it again.",
    403: "If you need it for your work, ask an administrator for another role, or the owner of "
    "the data for a grant.",
    404: "Check the address. What you may see is in the lists of the menu; what somebody else "
    "has may be theirs alone.",
    405: "Go back to the page that you came from.",
    409: "Go back, load the page again to see what is there now, and decide anew.",
    410: "Ask for it again.",
    413: "Go back, and send less.",
    422: "Go back, and correct it.",
    429: "Wait a minute, and try again.",
    500: "Nothing that you asked for was done halfway. Try again; if it fails again, tell whoever "
    "runs this gateway the number of the incident.",
    503: "Wait a moment, and load the page again.",
}
"""Status of a problem -> how its reader goes on."""


@dataclass(frozen=True, slots=True)
class MenuEntry:
    """A line of the menu, for people who may do `action`.

    Attributes:
        group: title of the group that the line belongs to; the first one has none.
    """

    path: str
    title: str
    action: Action
    group: str = ""


MENU = (
    MenuEntry("/", "Home", Action.SELF_READ),
    MenuEntry("/datasets", "Datasets", Action.DATASETS_READ),
    MenuEntry("/public-datasets", "Public data", Action.PUBLIC_DATASETS_READ),
    MenuEntry("/plan", "Plan a fit", Action.JOBS_CREATE),
    MenuEntry("/jobs", "Jobs", Action.JOBS_READ),
    MenuEntry("/models", "Models", Action.MODELS_READ),
    MenuEntry("/base-models", "Base models", Action.BASE_MODELS_READ),
    MenuEntry("/approvals", "Approvals", Action.APPROVALS_READ),
    MenuEntry("/ledger", "Ledger", Action.LEDGER_READ, "Oversight"),
    MenuEntry("/audit-log", "Audit log", Action.AUDIT_LOG_READ, "Oversight"),
    MenuEntry("/operations", "Operations", Action.JOBS_OPERATE, "Administration"),
    MenuEntry("/people", "People", Action.USERS_READ, "Administration"),
    MenuEntry("/retention", "Retention", Action.RETENTION_READ, "Administration"),
    MenuEntry("/settings", "Settings", Action.GATEWAY_READ, "Administration"),
)


class PageRoute(Route):
    """A route that answers with pages, also where it refuses."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Return the handler, its problems caught."""
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                answer: Response = await inner(request)
            except ProblemError as problem:
                return problem_page(request, problem)
            except TaciturnError as error:
                problem_of_error = from_error(error)
                if problem_of_error is None:
                    raise
                return problem_page(request, problem_of_error)
            except RequestValidationError as error:
                first = error.errors()[0]
                name = ".".join(str(part) for part in first["loc"][1:])
                message = first["msg"].removeprefix("Value error, ")
                return problem_page(request, ProblemError("invalid", f"{name}: {message}"))
            except HTTPException:
                raise
            except Exception:
                incident = new_id("inc")
                _log.exception("page failed", extra={"incident": incident})
                return problem_page(request, incident_problem(incident))
            return answer

        return handler


def page(
    request: Request,
    template: str,
    caller: Principal | None = None,
    status: int = 200,
    **values: Any,
) -> HTMLResponse:
    """Return the page that a template makes of `values`; browsers keep no copy of it."""
    services = services_of(request)
    text = (
        _environment()
        .get_template(template)
        .render(
            caller=caller,
            path=request.url.path,
            menu=[entry for entry in MENU if caller is not None and entry.action in caller.actions],
            can=frozenset() if caller is None else caller.actions,
            csrf_cookie=services.sessions.csrf_cookie,
            static=static_url,
            **values,
        )
    )
    headers = {
        "Content-Security-Policy": _POLICY,
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
        "Vary": "HX-Request, Accept-Encoding",
    }
    content = text.encode()
    # Pages hold no secret, so their lengths tell none; what shows a new token is below the limit.
    if len(content) > _PLAIN_BYTES and takes_gzip(request):
        content = gzip.compress(content, compresslevel=5, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return HTMLResponse(content, status_code=status, headers=headers)


def takes_gzip(request: Request) -> bool:
    """Return True if the browser says that it reads compressed answers."""
    return "gzip" in request.headers.get("accept-encoding", "")


def fragment(template: str, **values: Any) -> str:
    """Return a part of a page that is the same for all its readers."""
    return _environment().get_template(template).render(**values)


def public_address(services: Services) -> str:
    """Return the address under which people and their programs reach this gateway."""
    settings = services.gateway.settings
    return (settings.public_url or f"http://{settings.host}:{settings.port}").rstrip("/")


def go_to(path: str) -> Response:
    """Return the answer to a form that has done its work: its browser opens `path`."""
    return Response(status_code=204, headers={"HX-Redirect": path})


def problem_page(request: Request, problem: ProblemError) -> Response:
    """Return a problem as a page, or as a notice on the page whose form or link asked."""
    body = problem.problem()
    request.state.code = problem.code
    fragment = request.headers.get("hx-request") == "true"
    if body.status == 401 and "text/html" in request.headers.get("accept", ""):
        path = f"{SIGN_IN}?next={quote(_place(request), safe='/')}"
        if services_of(request).sessions.token(request) is not None:
            path += "&ended=1"
        if fragment:
            return Response(status_code=401, headers={"HX-Redirect": path})
        return RedirectResponse(path, status_code=303)
    caller = getattr(request.state, "caller", None)
    answer = page(
        request,
        "notice.html" if fragment else "problem.html",
        caller if isinstance(caller, Principal) else None,
        status=body.status,
        problem=body,
        way_on=_WAYS_ON.get(body.status, _WAYS_ON[422]),
    )
    if fragment:
        answer.headers["HX-Retarget"] = "#notice"
        answer.headers["HX-Reswap"] = "innerHTML"
    for name, value in problem.headers.items():
        answer.headers[name] = value
    return answer


def wants_page(request: Request) -> bool:
    """Return True if a browser opens an address that is not a program's."""
    programs = request.url.path.startswith(("/v1/", "/openai/"))
    return not programs and "text/html" in request.headers.get("accept", "")


def _place(request: Request) -> str:
    """Return the page that its reader sees: of a part of a page, the page that asked for it."""
    url = urlsplit(request.headers.get("hx-current-url", "") or str(request.url))
    return url.path + (f"?{url.query}" if url.query else "")


@functools.cache
def static_files() -> Mapping[str, tuple[str, bytes]]:
    """Name of each file that browsers load -> its digest and its bytes."""
    folder = FOLDER / "static"
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest()[:16],
            path.read_bytes(),
        )
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".css", ".js", ".svg")
    }


@functools.cache
def compressed(name: str) -> bytes:
    """Return one of these files as browsers that read compressed answers get it."""
    return gzip.compress(static_files()[name][1], compresslevel=9, mtime=0)


def static_url(name: str) -> str:
    """Return the address of a file, which changes with its content."""
    return f"{STATIC}/{static_files()[name][0]}/{name}"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        auto_reload=False,  # each page would look at the time of every file that it is made of
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        when=when,
        day=day,
        up=rounded_up,
        down=rounded_down,
        delta=power_of_ten,
        duration=duration,
        share=share,
        figure=figure,
        chart_time=chart_time,
        sentence=sentence,
        promise=promise,
        holder=holder,
        model_title=model_title,
        job_name=job_name,
        size=size,
    )
    return environment


def when(moment: datetime | None) -> Markup:
    """Return a moment that the page's script shows in the reader's zone."""
    if moment is None:
        return Markup("never")
    text = moment.strftime("%Y-%m-%d %H:%M UTC")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(moment.isoformat(), text, text)


def day(moment: datetime) -> Markup:
    """Return a moment of which the page's script shows the day, in the reader's zone."""
    return _fixed(moment, "day", "%-d %B %Y")


def clock_time(moment: datetime) -> Markup:
    """Return a moment of which the page's script shows day and time, in the reader's zone."""
    return _fixed(moment, "time", "%Y-%m-%d at %H:%M UTC")


def _fixed(moment: datetime, form: str, text: str) -> Markup:
    return Markup('<time datetime="{}" data-form="{}">{}</time>').format(
        moment.isoformat(), form, moment.strftime(text)
    )


def sentence(text: str) -> Markup:
    """Return a text of a problem as a sentence: with a full stop, a large letter unless it begins
    with the name of a field, and commands between backticks as code.

    Only commands: what somebody wrote is quoted as it is, whatever stands in it.
    """
    ends = text.endswith((".", "?", "!"))
    has_name = re.match(r"[a-z_.0-9]+[=:]", text) is not None
    text = (text if has_name else text[:1].upper() + text[1:]) + ("" if ends else ".")
    parts = re.split(r"`((?:taciturn|hf) [^`'\"]*)`", text)
    form = (Markup("{}"), Markup("<code>{}</code>"))
    return Markup("").join(form[number % 2].format(part) for number, part in enumerate(parts))


def promise(text: str) -> Markup:
    """Return the line of a policy in words that stand beside its badge."""
    terms = _TERMS.fullmatch(text)
    if terms is not None:
        rounding = rounded_down if terms["budget"] else rounded_up
        words = Markup("{}epsilon {} at delta {}, for each value of <code>{}</code>")
        epsilon, delta = rounding(float(terms["epsilon"])), power_of_ten(float(terms["delta"]))
        budget = "a budget of " if terms["budget"] else ""
        return words.format(budget, epsilon, delta, terms["unit"])
    kind = re.fullmatch(r"(?:no guarantee|mock) \((.*)\)", text, re.DOTALL)
    return escape(text if kind is None else kind[1])


def holder(name: str) -> str:
    """Return who holds a grant, or did something, by the name that people know."""
    kind, _, rest = name.partition(":")
    return {"user": rest, "group": f"group {rest}"}.get(kind, name)


def job_name(kind: JobKind) -> str:
    """Return what a job of a kind is called."""
    names = {"evaluate": "Evaluation", "synthesize": "Synthesis", "probe": "Check"}
    return names.get(kind, kind.capitalize())


def model_title(model: ModelView) -> str:
    """Return the name of a model, or what it is where nobody has named it."""
    base = model.base_model.rpartition("/")[2]
    return model.name or f"{base} on {model.dataset or model.namespace}"


def size(count: int) -> str:
    """Return a number of bytes with a unit."""
    if count < 1000:
        return f"{count} B"
    power = min(3, int(math.log(count, 1000)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


def chart_time(seconds: float) -> Markup:
    """Return a moment of a chart, in seconds since 1970, as `when` shows it."""
    return when(datetime.fromtimestamp(seconds, UTC))


def rounded_up(epsilon: float) -> str:
    """Return an epsilon that was spent, with three digits and never too small."""
    return _digits(epsilon, math.ceil)


def rounded_down(epsilon: float) -> str:
    """Return an epsilon that is left, with three digits and never too large."""
    return _digits(epsilon, math.floor)


def _digits(value: float, rounding: Callable[[float], int]) -> str:
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    # What floats add to a number of few digits must not move it to the next one.
    nudge = -1e-9 if rounding is math.ceil else 1e-9
    text = f"{rounding(value * 10**digits + nudge) / 10**digits:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def power_of_ten(delta: float) -> Markup:
    """Return a delta as a power of ten, as in 10<sup>-6</sup>."""
    if delta <= 0:
        return Markup("0")
    exponent = math.floor(math.log10(delta) + 1e-9)
    factor = f"{delta / 10**exponent:.2g}"
    power = Markup("10<sup>{}</sup>").format(exponent)
    return power if factor in ("1", "1.0") else escape(f"{factor} × ") + power


def duration(seconds: float) -> str:
    """Return a time span in its two largest units."""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (whole, "s")]
    first = next((index for index, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"


def figure(value: object) -> str:
    """Return a value of a report or a plan as people read it: four digits of what is not whole."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def share(value: float) -> str:
    """Return a share in percent."""
    return f"{100 * value:.1f}".removesuffix(".0") + "%"
