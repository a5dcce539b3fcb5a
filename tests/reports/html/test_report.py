"""The report page: verdict first, self-contained, escaped, and loud where nothing is promised."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from taciturn.accounting.events import dpsgd_event, event_to_dict
from taciturn.reports.figures import Figure, ReleasedFigures
from taciturn.reports.html.report import report_page
from taciturn.reports.privacy import (
    DECLARED_PUBLIC,
    Audit,
    CanaryReport,
    PrivacyReport,
    PublicData,
)
from taciturn.reports.spending import with_steps

_VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """What a browser would make of a page; fails on tags that do not close in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data
        if "style" not in self.open:
            self.words += data, " "

    @property
    def shown(self) -> str:
        return " ".join("".join(self.words).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def full(spent_more: PrivacyReport, figures: ReleasedFigures, audit: Audit) -> str:
    return report_page(spent_more, figures, audit)


def test_structure(full: str) -> None:
    page = Page(full)
    assert full.startswith("<!DOCTYPE html>")
    assert page.of("html") == [{"lang": "en"}]
    assert page.texts["title"][0] == "Privacy report: some/base"
    assert len(page.texts["h1"]) == 1
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    labels = [each["aria-labelledby"] for _, each in page.elements if "aria-labelledby" in each]
    assert set(labels) <= set(ids)
    assert len(page.of("section")) == len([label for label in labels if "-" not in str(label)])


def test_it_loads_nothing(full: str) -> None:
    page = Page(full)
    assert not re.search(r"https?://|//[a-z]|url\(|@import|@font-face", full)
    loading = {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}
    assert not [tag for tag, attributes in page.elements if loading & set(attributes)]
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}
    policies = [meta["content"] for meta in page.of("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert not [name for _, each in page.elements for name in each if name.startswith("on")]


def test_every_figure_says_in_words_what_it_shows(full: str) -> None:
    page = Page(full)
    charts = [svg for svg in page.of("svg") if "viewbox" not in svg]
    assert len(charts) == 11
    assert all(svg.get("role") == "img" for svg in charts)
    described = " ".join(page.texts["title"])
    for words in (
        "with 1% of non-members accused, at most", "largest edge over guessing",
        "Found: at least 0.61; Promised: at most", "250 in the data, half of them above 0",
        "250 not in the data, half of them above 0", "Base model 4.708 (perplexity 111)",
        "4.310 ±\u00a00.118", "28.7%", "Likeness of samples: Base model 0.110",
        "Trained on synthetic text 71.0% ±\u00a03.9%", "Epsilon spent by step",
    ):  # fmt: skip
        assert words in described, words


def test_the_verdict_comes_first_and_every_number_is_there(
    full: str, spent_more: PrivacyReport
) -> None:
    page = Page(full)
    assert page.texts["h1"][0].replace("\u00a0", " ") == (
        f"Trained with differential privacy: ε = {spent_more.epsilon:.4g} and δ = 10⁻⁵ for each "
        "“patient_id”"
    )
    shown = page.shown
    order = [
        "Trained with", "Promised", "Not promised", "Against whom", "In numbers",
        "What an attacker can find out at most", "What an audit found",
        "What the model is worth", "What the promise was spent on", "For engineers",
    ]  # fmt: skip
    places = [shown.index(words) for words in order]
    assert places == sorted(places)
    for words in (
        "add or remove one unit", "at most 8 records of a unit are used",
        "1,234, treated as public", "patient_id: all records that share its value",
        "0.012 for all units together", "500 invented canaries (new-token)",
        "162 of 250 guesses", "with confidence 0.95",
        "On 300 private units", "Exact, on 4,321 records that were declared public",
        "Noise multiplier 1.6", "Sampling probability 0.12", "Clip norm (l2) 0.001",
        "34,567", "test accountant", "cd" * 32, "ab12" * 16, "torch 2.13.0",
        '"noise_multiplier": 3.2', "get_epsilon(1e-05)", "taciturn cert verify",
        "This page itself is not signed",
    ):  # fmt: skip
        assert words in shown, words


def test_tables_have_headings_for_rows_and_columns(full: str) -> None:
    page = Page(full)
    assert len(page.of("table")) == 5
    assert all(heading.get("scope") in ("row", "col") for heading in page.of("th"))


def test_unlimited_is_loud_and_promises_nothing(
    unlimited: PrivacyReport, figures: ReleasedFigures, audit: Audit
) -> None:
    page = Page(report_page(unlimited, figures, audit))
    assert page.texts["h1"] == ["No guarantee: this model can have memorised its training data"]
    assert [p["class"] for p in page.of("p") if "remark" in str(p.get("class"))] == [
        "remark broken"
    ]
    assert "unlimited: no guarantee" in page.shown
    for words in ("What an attacker can find out", "What the promise was spent on", "total above"):
        assert words not in page.shown
    assert "Fitted, no privacy" in page.shown
    assert not [h3 for h3 in page.of("h3") if h3.get("class") == "private"]


def test_a_bare_report_has_no_empty_parts(report: PrivacyReport) -> None:
    shown = Page(report_page(report)).shown
    for words in ("audit found", "What the model is worth", "None", "nan", "reached in the audit"):
        assert words not in shown


def test_text_from_elsewhere_is_escaped(report: PrivacyReport, audit: Audit) -> None:
    attack = "<script>alert(1)</script>{{ 7 * 7 }}&\"'"
    fields = {"privacy_unit": attack[:30], "base_model": attack, "mechanism": attack}
    hostile = report.model_copy(
        update={**fields, "libraries": {attack: attack}, "base_model_sha256": {attack: "00"}}
    )
    found = audit.model_copy(update={"method": attack, "threat_model": attack})
    text = report_page(hostile, None, found)
    page = Page(text)
    assert "<script" not in text
    assert "script" not in {tag for tag, _ in page.elements}
    assert attack in page.shown
    assert page.shown.count("{{ 7 * 7 }}") >= 6


def test_a_long_unit_is_named_once(report: PrivacyReport) -> None:
    unit = "coalesce(hospital_information_system_patient_number, external_number)"
    shown = Page(report_page(report.model_copy(update={"privacy_unit": unit}))).shown
    assert shown.count(unit) == 1
    assert "for each unit" in shown
    single = report.model_copy(update={"privacy_unit": "one record", "max_records_per_unit": 1})
    shown = Page(report_page(single)).shown
    assert "for each record" in shown
    assert "at most 1 record of a unit" in shown


def test_a_weak_promise_is_called_weak(report: PrivacyReport) -> None:
    def page(noise: float) -> str:
        event = dpsgd_event(sampling_probability=0.3, noise_multiplier=noise, steps=60)
        step = report.spent[0].model_copy(update={"dp_event": event_to_dict(event)})
        return report_page(with_steps(report, [step]))

    assert "That is a weak promise" in page(1.0)
    assert "weak" not in page(5.0)


def test_a_refuted_promise_is_said_first_and_stays_refuted(
    report: PrivacyReport, spent_more: PrivacyReport, audit: Audit
) -> None:
    assert report.epsilon is not None
    assert spent_more.epsilon is not None
    bound = report.epsilon + 0.01
    assert bound < spent_more.epsilon
    found = audit.model_copy(update={"epsilon_lower_bound": bound})
    # What is spent later does not make the fit's promise true.
    for promised in (report, spent_more):
        page = Page(report_page(promised, None, found))
        assert page.texts["h1"][0].startswith("The guarantee is broken")
        assert f"ε\u00a0≥\u00a0{bound:.3g}" in page.texts["h1"][0]
        for words in ("find at most", "Attacks lie on it or below", "This holds for"):
            assert words not in page.shown
    assert "broken:" not in Page(report_page(report, None, audit)).shown


def test_canaries_are_told_apart_from_the_other_units(report: PrivacyReport) -> None:
    canaries = CanaryReport(number=500, kind="random", commitment="cd" * 32)
    shown = Page(report_page(report.model_copy(update={"canaries": canaries}))).shown
    assert "1,234, treated as public; 500 of them canaries of an audit" in shown


def test_a_diverged_model_has_a_page(report: PrivacyReport, figures: ReleasedFigures) -> None:
    first = figures.evaluations[0]
    bad = first.base.model_copy(update={"nats_per_token": Figure(value=float("inf"))})
    worse = first.base.model_copy(update={"nats_per_token": Figure(value=float("nan"))})
    found = ReleasedFigures(evaluations=(first.model_copy(update={"base": bad, "fitted": worse}),))
    read = ReleasedFigures.model_validate_json(found.model_dump_json())
    assert Page(report_page(report, read)).shown.count("not a number") >= 2


def test_figures_of_private_rows_cannot_be_kept() -> None:
    fields: dict[str, Any] = {"n_units": 3, "base": {"nats_per_token": {"value": 1.0},
                              "token_accuracy": {"value": 0.5}}}  # fmt: skip
    with pytest.raises(ValueError, match="basis"):
        ReleasedFigures.model_validate(
            {"evaluations": [{"basis": "private, exact: for the owner's eyes only", **fields}]}
        )


def test_public_text_is_said_not_to_be_covered(report: PrivacyReport) -> None:
    text = PublicData(records=4567, sha256="ef" * 32)
    said = report_page(report.model_copy(update={"public_data": (text,)}))
    assert "Public text, not covered" in said
    for part in ("4,567 records", "ef" * 32, DECLARED_PUBLIC):
        assert part in said
    assert "Public text" not in report_page(report)
