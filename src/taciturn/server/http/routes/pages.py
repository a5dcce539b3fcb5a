"""The page where a link sets a password."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from taciturn.server.http.access import Svc, entrance, public
from taciturn.server.http.blocking import Route
from taciturn.server.http.routes.logins import address_of
from taciturn.server.identity.links import PAGE
from taciturn.server.problems import ProblemError
from taciturn.wire.identity import LinkRedemption

router = APIRouter(tags=["pages"], route_class=Route)

_TEXT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>taciturn</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"></head>
<body>{body}</body></html>
"""
# What follows the # reaches no server: the page itself puts it into the form.
_SCRIPT = "document.forms[0].link.value=location.hash.slice(1)"
_SET = f"""<h1>Your password at this gateway</h1>
<form method="post" action="{PAGE}">
<p><label>Link, or what follows its #<br>
<input name="link" required size="60" autocomplete="off"></label></p>
<p><label>New password, 12 characters at least<br><input name="password" type="password" required
minlength="12" maxlength="1000" autocomplete="new-password"></label></p>
<p>Setting it ends all your sessions and tokens. You and the auditors see when it was set, and who
has made the link.</p>
<p><button>Set password</button></p></form>
<script>{_SCRIPT}</script>"""


def page(body: str, *, forms: str = "'none'", script: str | None = None) -> HTMLResponse:
    """A page of this HTML, which loads nothing and sends its forms to `forms` alone."""
    policy = f"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action {forms}"
    if script is not None:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    headers = {
        "Content-Security-Policy": policy,
        # With no-referrer, browsers send forms from the origin "null", which is another site's.
        "Referrer-Policy": "same-origin",
    }
    return HTMLResponse(_TEXT.format(body=body), headers=headers)


async def fields_of(request: Request) -> dict[str, str]:
    """The fields of a form that a page of ours has sent; the last one of each name."""
    text = (await request.body()).decode("utf-8", "replace")
    try:
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=20)
    except ValueError:
        raise ProblemError("invalid", "the form has more than 20 fields") from None
    return {name: values[-1] for name, values in fields.items()}


@router.get(PAGE, dependencies=[Depends(public)], response_class=HTMLResponse)
async def read_password_page() -> HTMLResponse:
    """Page that a link for a password leads to."""
    return page(_SET, forms="'self'", script=_SCRIPT)


@router.post(PAGE, dependencies=[Depends(entrance)], response_class=HTMLResponse)
async def set_password(request: Request, services: Svc) -> HTMLResponse:
    """Set a password from that page's form: `link` and `password`."""
    fields = await fields_of(request)
    try:
        redemption = LinkRedemption.model_validate(
            {name: fields.get(name, "") for name in LinkRedemption.model_fields}
        )
    except ValidationError:
        raise ProblemError(
            "invalid", "give `link`, and `password` of 12 to 1000 characters"
        ) from None
    name = await run_in_threadpool(services.links.redeem, redemption, address_of(request))
    request.state.actor = f"user:{name}"
    return page(
        f"<h1>Your password is set</h1><p>Log in as <b>{escape(name)}</b>. What sessions and "
        "tokens you had have ended.</p>"
    )
