"""Templates of the console, filled; the headers of a page; problems as pages."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from taciturn.errors import TaciturnError
from taciturn.server.http.access import services_of
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.problems import ProblemError, from_error
from taciturn.server.services import Services

FOLDER = Path(__file__).parent
STATIC = "/static"
SIGN_IN = "/sign-in"

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


@dataclass(frozen=True, slots=True)
class MenuEntry:
    """A line of the menu, for people who may do `action`.

    Attributes:
        begins: title of the group that begins with this line.
    """

    path: str
    title: str
    action: Action
    begins: str | None = None


MENU = (
    MenuEntry("/", "Home", Action.SELF_READ),
    MenuEntry("/datasets", "Datasets", Action.DATASETS_READ),
    MenuEntry("/plan", "Plan a fit", Action.JOBS_CREATE),
    MenuEntry("/jobs", "Jobs", Action.JOBS_READ),
    MenuEntry("/models", "Models", Action.MODELS_READ),
    MenuEntry("/approvals", "Approvals", Action.APPROVALS_READ),
    MenuEntry("/ledger", "Ledger", Action.LEDGER_READ, "Oversight"),
    MenuEntry("/audit-log", "Audit log", Action.AUDIT_LOG_READ),
    MenuEntry("/operations", "Operations", Action.JOBS_OPERATE, "Administration"),
    MenuEntry("/people", "People", Action.USERS_READ),
    MenuEntry("/base-models", "Base models", Action.BASE_MODELS_READ),
    MenuEntry("/retention", "Retention", Action.RETENTION_READ),
    MenuEntry("/settings", "Settings", Action.GATEWAY_READ),
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
        "Vary": "HX-Request",
    }
    return HTMLResponse(text, status_code=status, headers=headers)


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
        path = f"{SIGN_IN}?next={quote(request.url.path, safe='/')}"
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
    )
    if fragment:
        answer.headers["HX-Retarget"] = "#notice"
        answer.headers["HX-Reswap"] = "innerHTML"
    for name, value in problem.headers.items():
        answer.headers[name] = value
    return answer


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


def static_url(name: str) -> str:
    """Return the address of a file, which changes with its content."""
    return f"{STATIC}/{static_files()[name][0]}/{name}"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        when=when,
        up=rounded_up,
        down=rounded_down,
        delta=power_of_ten,
        duration=duration,
        share=share,
        figure=figure,
        chart_time=chart_time,
    )
    return environment


def when(moment: datetime | None) -> Markup:
    """Return a moment that the page's script shows in the reader's zone."""
    if moment is None:
        return Markup("never")
    text = moment.strftime("%Y-%m-%d %H:%M UTC")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(moment.isoformat(), text, text)


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
