"""Vocabulary of the notes: people, conditions and departments, read from `vocabulary.toml`."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

_SEVERITIES = ("mild", "moderate", "severe", "severe", "persistent", "early", "advanced")
_LABORATORY = re.compile(r"(?P<name>.+) (?P<low>[\d.]+)-(?P<high>[\d.]+) ?(?P<unit>.*)")
_DRUG = re.compile(r"(?P<name>.+) (?P<doses>[\d./]+) (?P<unit>[^,]+), (?P<frequency>.+)")


@dataclass(frozen=True)
class Laboratory:
    """A measured value, usually between `low` and `high`, written with `decimals`."""

    name: str
    low: float
    high: float
    unit: str
    decimals: int

    @classmethod
    def parse(cls, text: str) -> Laboratory:
        """Read "name low-high unit"."""
        match = _matched(_LABORATORY, text)
        low, high = match["low"], match["high"]
        decimals = max(len(number.partition(".")[2]) for number in (low, high))
        return cls(match["name"], float(low), float(high), match["unit"], decimals)


@dataclass(frozen=True)
class Drug:
    """A drug with the doses it comes in, smallest first."""

    name: str
    doses: tuple[str, ...]
    unit: str
    frequency: str

    @classmethod
    def parse(cls, text: str) -> Drug:
        """Read "name dose/dose/dose unit, frequency"."""
        match = _matched(_DRUG, text)
        doses = tuple(match["doses"].split("/"))
        return cls(match["name"], doses, match["unit"], match["frequency"])


@dataclass(frozen=True)
class Specialty:
    """A department: its names, what it orders, what it advises."""

    clinics: tuple[str, ...]
    tests: tuple[str, ...]
    advice: tuple[str, ...]


@dataclass(frozen=True)
class Condition:
    """A disease: whom it strikes (`share` is relative), how it shows, how it is treated."""

    name: str
    specialty: Specialty
    ages: tuple[int, int]
    share: float
    acute: bool
    sexes: tuple[str, ...]
    severities: tuple[str, ...]
    symptoms: tuple[str, ...]
    findings: tuple[str, ...]
    laboratory: tuple[Laboratory, ...]
    drugs: tuple[Drug, ...]


@dataclass(frozen=True)
class People:
    """First names by sex ("F", "M"), family names, occupations, and lists of past history."""

    given_names: dict[str, tuple[str, ...]]
    family: tuple[str, ...]
    occupations: tuple[str, ...]
    history: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Vocabulary:
    """Everything that a note can say."""

    sentences: dict[str, tuple[str, ...]]
    people: People
    conditions: tuple[Condition, ...]

    def condition(self, name: str) -> Condition:
        """The condition called `name`; raises KeyError if there is none."""
        matches = [condition for condition in self.conditions if condition.name == name]
        if not matches:
            raise KeyError(name)
        return matches[0]


@cache
def vocabulary() -> Vocabulary:
    """The embedded vocabulary, read once."""
    source = files("taciturn.embedded").joinpath("vocabulary.toml")
    tables = tomllib.loads(source.read_text(encoding="utf-8"))
    specialties = {
        name: Specialty(**{key: tuple(items) for key, items in table.items()})
        for name, table in tables["specialties"].items()
    }
    return Vocabulary(
        sentences={kind: tuple(items) for kind, items in tables["sentences"].items()},
        people=_people(tables["people"]),
        conditions=tuple(_condition(table, specialties) for table in tables["conditions"]),
    )


def _people(table: dict[str, Any]) -> People:
    return People(
        given_names={"F": tuple(table["given_female"]), "M": tuple(table["given_male"])},
        family=tuple(table["family"]),
        occupations=tuple(table["occupations"]),
        history=tuple(tuple(items) for items in table["history"].values()),
    )


def _condition(table: dict[str, Any], specialties: dict[str, Specialty]) -> Condition:
    youngest, oldest = table["ages"]
    return Condition(
        name=table["name"],
        specialty=specialties[table["specialty"]],
        ages=(youngest, oldest),
        share=float(table["share"]),
        acute=table.get("acute", False),
        sexes=tuple(table.get("sexes", ("F", "M"))),
        severities=tuple(table.get("severities", _SEVERITIES)),
        symptoms=tuple(table["symptoms"]),
        findings=tuple(table["findings"]),
        laboratory=tuple(Laboratory.parse(text) for text in table["laboratory"]),
        drugs=tuple(Drug.parse(text) for text in table["drugs"]),
    )


def _matched(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    match = pattern.fullmatch(text)
    if match is None:
        raise ValueError(f"vocabulary entry {text!r} is not of the form {pattern.pattern}")
    return match
