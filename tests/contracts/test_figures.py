"""Measured figures in documents are those of results files that commands of this repository write.

A comment names file and figures before a paragraph, a list, a table or a block of output:

    <!-- figures: bench/results/attacks.json secret -->

A table is the file's, cell by cell, and a block of output line by line. A number of the file
stands in the paragraph, rounded as it is written there ("about 160" is rounded to tens), and no
other figure does. What looks like a figure and was not measured says why: `<!-- not measured: a
goal -->`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("README.md", "docs/**/*.md", "src/taciturn/embedded/**/README.md", "examples/**/*.md")
DOCUMENTS = sorted(path for place in PLACES for path in ROOT.glob(place))
# What commands write a results file: scripts here, and the demo as people run it.
COMMAND = re.compile(r"python ((?:bench|examples)/\w+\.py)(?: |$)|taciturn demo$")

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FENCE = re.compile(r" *```(\w*)")
_NOT_PROSE = re.compile(r"`[^`]*`|\]\([^)]*\)|\b(?:Python|Kubernetes) \d[\d.]*|arXiv[: ]\S+")
_NUMBER = re.compile(
    r"(?P<about>(?:about|some) )?(?<![\w.,/^-])(?P<power>10\^-?)?(?P<digits>\d[\d,]*(?:\.\d+)?)"
    r"(?P<exponent>e-?\d+)?(?P<percent> ?%)?(?![\w%]|[.,]\d|\.\w)(?P<unit> nats?\b| ms\b| MB\b)?"
    r"|(?<![\w.])(?P<times>\d+(?:\.\d+)?)x\b"
)
_TIME = re.compile(r"\d[\d.,]* (?:s|seconds|minutes|hours)\b")
_SAYS = re.compile(r"\b(?:measured|took)\b|bench/")


@dataclass(frozen=True)
class Block:
    """A paragraph, list, table or code block of a document.

    Attributes:
        sources: the arguments of its `figures:` comments: a file, and names of figures in it.
        exempt: why its figures are no measurements; empty where that is not said.
        language: of a code block; None of prose.
    """

    text: str
    sources: tuple[tuple[str, ...], ...] = ()
    exempt: str = ""
    language: str | None = None


def blocks(text: str) -> Iterator[Block]:
    """Split a document at blank lines and fences, each block with the comments before it."""
    text = _COMMENT.sub(lambda match: " ".join(match[0].split()), text)
    sources: list[tuple[str, ...]] = []
    exempt, language, lines = "", None, list[str]()
    for line in [*text.splitlines(), ""]:
        fence = _FENCE.match(line)
        said = re.fullmatch(r"<!-- (figures|not measured): (.+) -->", line)
        if language is None and said and said[1] == "figures":
            sources.append(tuple(said[2].split()))
        elif language is None and said:
            exempt = said[2]
        elif (fence or (not line.strip() and language is None)) and (lines or language is not None):
            yield Block("\n".join(lines), tuple(sources), exempt, language)
            sources, exempt, lines = [], "", []
            language = fence[1] if fence and language is None else None
        elif fence:
            language = fence[1]
        elif line.strip() or language is not None:
            lines.append(line)
    assert not sources, f"nothing follows {sources}"


@functools.cache
def results(file: str) -> dict[str, Any]:
    """Return a results file."""
    found: dict[str, Any] = json.loads((ROOT / file).read_text(encoding="utf-8"))
    return found


def named(file: str, name: str) -> Any:
    """Return a figure by its name, in which dots lead into mappings."""
    value: Any = results(file)
    for part in name.split("."):
        value = value[part]
    return value


def cells(text: str) -> list[list[str]]:
    """Return the cells of a table, without the line below its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]


@dataclass(frozen=True)
class Figure:
    """A number as it is written, and whether it looks like a measured one."""

    text: str
    value: float
    half_digit: float
    measured: bool

    def rounds(self, value: float) -> bool:
        """Tell whether this is `value`, rounded to the digits that are written."""
        return abs(value - self.value) <= self.half_digit * (1 + 1e-9)


def figures(text: str, *, times: bool = False) -> list[Figure]:
    """Return the numbers in prose; durations count as measured where `times` is true."""
    prose = _NOT_PROSE.sub(" ", text)
    durations = {match.start() for match in _TIME.finditer(prose)} if times else set()
    return [_figure(match, match.start("digits") in durations) for match in _NUMBER.finditer(prose)]


def _figure(match: re.Match[str], duration: bool) -> Figure:
    digits = (match["digits"] or match["times"]).replace(",", "")
    whole, _, decimals = digits.partition(".")
    factor = float(f"1{match['exponent'] or ''}") * (0.01 if match["percent"] else 1)
    zeros = len(whole) - len(whole.rstrip("0")) if match["about"] and not decimals else 0
    return Figure(
        text=match[0].strip(),
        value=float(digits) * factor,
        half_digit=0.5 * 10.0 ** (zeros - len(decimals)) * factor,
        measured=duration
        or bool(match["power"] or match["percent"] or match["times"])
        or len(decimals) > 1
        or bool(decimals and match["exponent"])
        or bool(match["unit"]),
    )


def problems(block: Block) -> Iterator[str]:
    """Figures of a block that differ from their file, and figures without one."""
    numbers: list[float] = []
    compared = False
    for file, *names in block.sources:
        values = [named(file, name) for name in names]
        numbers += [value for value in values if isinstance(value, int | float)]
        for name, value in zip(names, values, strict=True):
            if isinstance(value, list):
                compared = True
                yield from _differences(block, f"{file} {name}", value)
    if compared or block.exempt:
        return
    if block.language not in (None, "", "text") and not block.sources:
        return
    shown = figures(block.text, times=bool(_SAYS.search(block.text) or block.sources))
    for value in numbers:
        if not any(figure.rounds(value) for figure in shown):
            yield f"{value} stands nowhere in: {block.text[:80]}"
    for figure in shown:
        if figure.measured and not any(figure.rounds(value) for value in numbers):
            yield f"{figure.text} has no source in: {block.text[:80]}"


def _differences(block: Block, source: str, value: list[Any]) -> Iterator[str]:
    if isinstance(value[0], str):
        if block.text.splitlines() != value:
            yield f"the output is not that of {source}"
    elif cells(block.text) != value:
        lines = [f"| {' | '.join(row)} |" for row in value]
        lines.insert(1, "|---" * len(value[0]) + "|")
        yield f"the table is not that of {source}:\n" + "\n".join(lines)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_figures_are_the_measured_ones(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [line for block in blocks(text) for line in problems(block)] == []


def sources() -> set[str]:
    """Return the results files that documents name."""
    return {
        file
        for path in DOCUMENTS
        for block in blocks(path.read_text(encoding="utf-8"))
        for file, *_ in block.sources
    }


def command_problems(command: str) -> Iterator[str]:
    """A script that is not there, and options that no script here has."""
    match = COMMAND.match(command)
    if match is None:
        yield f"{command!r} is no command of this repository"
    elif match[1] is not None:
        if not (ROOT / match[1]).is_file():
            yield f"{match[1]} is not there"
        texts = [path.read_text(encoding="utf-8") for path in ROOT.glob("bench/**/*.py")]
        for option in re.findall(r" (--[\w-]+)", command):
            if not any(f'"{option}"' in text for text in texts):
                yield f"{match[1]} has no {option}"


@pytest.mark.parametrize("file", sorted(sources()))
def test_results_say_where_they_are_from(file: str) -> None:
    found = results(file)
    about = {**found, **found["machine"]} if isinstance(found["machine"], dict) else found
    assert list(command_problems(about["command"])) == []
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", about["date"])
    assert about["machine"]


def test_no_results_file_is_idle() -> None:
    written = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("bench/results/*.json")
        if not re.search("_quick|_part|_busy", path.stem)
    }
    assert written - sources() == set()


PLANTED = "bench/results/planted.json"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A results file."""
    file = {
        "share": 0.347,
        "kept_mb": 158.2,
        "rows": [["fit", "nats"], ["a", "4.28"]],
        "out": ["a"],
    }
    monkeypatch.setitem(globals(), "results", {PLANTED: file}.__getitem__)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("It kept 35%.", "35% has no source"),
        ("It moved by 1.7e-2.", "1.7e-2 has no source"),
        ("bench/x.py took 5 minutes.", "5 has no source"),
        ("| fit | nats |\n|---|---|\n| a | 4.28 |", "4.28 has no source"),
        (f"<!-- figures: {PLANTED} share -->\nIt kept 36%.", "stands nowhere"),
        (f"<!-- figures: {PLANTED} share -->\nIt kept 35% of 41%.", "41% has no source"),
        (f"<!-- figures: {PLANTED} kept_mb -->\nIt holds 160 MB.", "160 MB has no source"),
        (f"<!-- figures: {PLANTED} rows -->\n| fit | nats |\n|---|---|\n| a | 4.29 |", "table"),
        (f"<!-- figures: {PLANTED} out -->\n```\nb\n```", "the output"),
        ("```\nheld-out loss 4.28\n```", "4.28 has no source"),
    ],
)
@pytest.mark.usefixtures("planted")
def test_planted_figure_is_caught(text: str, problem: str) -> None:
    found = [line for block in blocks(text) for line in problems(block)]
    assert any(problem in line for line in found), found


@pytest.mark.parametrize(
    "text",
    [
        f"<!-- figures: {PLANTED} share kept_mb -->\nIt kept 35% in about 160 MB.",
        f"<!-- figures: {PLANTED}\n     share -->\nIt kept 0.347.",
        f"<!-- figures: {PLANTED} rows -->\n| fit | nats |\n|---|---|\n| a | 4.28 |\n\nAnd so on.",
        f"<!-- figures: {PLANTED} out -->\n```\na\n```",
        "<!-- not measured: a goal -->\nAt least 60%.",
        "With Python 3.11 and `delta=0.25`, wait for 5 minutes at epsilon 0.5, delta 1e-5.",
        "```sh\ntaciturn fit --epsilon 0.25\n```",
    ],
)
@pytest.mark.usefixtures("planted")
def test_true_figures_pass(text: str) -> None:
    assert [line for block in blocks(text) for line in problems(block)] == []


@pytest.mark.parametrize(
    "command", ["python bench/nowhere.py", "python bench/phee.py --nothing", "ask a friend"]
)
def test_planted_command_is_caught(command: str) -> None:
    assert list(command_problems(command))
