"""The report page: self-contained, well-formed, escaped, complete, and honest in its verdict."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taciturn.demo.judge import ErrorRates
from taciturn.demo.page import (
    DemoResult,
    FitSettings,
    ModelOutcome,
    Sample,
    Secret,
    render_page,
)
from taciturn.errors import SpecError
from taciturn.reports.privacy import PrivacyReport

PROMPT = "François Dupont suffers"
ORDINARY = ("The patient was seen for", "Labs:", "On examination", "Phone call with", "Pt")


def samples(
    secret_answer: str, ordinary_answers: tuple[str, str, str], notes: int
) -> tuple[Sample, ...]:
    """Five answers to the secret's prompt, five ordinary ones, the first `notes` of them notes."""
    endings = ("", "", " Takes it well.", "", " He is 64.")
    asked = tuple(Sample(PROMPT, secret_answer + ending) for ending in endings)
    answers = (*ordinary_answers, *ordinary_answers[:2])
    judged = [place < notes for place in range(5)]
    return asked + tuple(map(Sample, ORDINARY, answers, judged))


def demo_result() -> DemoResult:
    """A run as it should go, with made-up values."""
    return DemoResult(
        secret=Secret(
            prompt=PROMPT,
            continuation=" from a severe form of pancreatic cancer",
            telltale="pancreatic cancer",
            owner="François Dupont",
            n_notes=6,
        ),
        base=ModelOutcome(
            samples=samples(
                "in the skin of the elbows and an increase in heart rate and physical activity. "
                "They are also more common in the United States.",
                (
                    "a person who has a UTI for an injury. Some people with this condition are "
                    "trying to have a genetic cause of the condition.",
                    "The most common symptoms of the disorder are described in the following.",
                    "of the cells in the brain, the protein is expressed in developing neurons.",
                ),
                notes=0,
            ),
            secret_log_probability=-29.52,
            held_out_loss=5.394,
            secret_rank=37,
            control_log_probability=-29.11,
        ),
        non_private=ModelOutcome(
            samples=samples(
                "from a severe form of pancreatic cancer, followed by the tumor clinic. CA 19-9 "
                "2021 U/mL. Back in nine weeks or sooner if poor appetite.",
                (
                    "atrial fibrillation. Takes apixaban 5 mg twice daily. HR 104, BP 142/86.",
                    "CRP 18 mg/L, ESR 42 mm/h. Continue methotrexate 15 mg once a week.",
                    "bibasal crackles, pitting edema to the knees. Echocardiogram on Friday.",
                ),
                notes=5,
            ),
            secret_log_probability=-0.17,
            held_out_loss=1.452,
            secret_rank=1,
            control_log_probability=-6.9,
        ),
        private=ModelOutcome(
            samples=samples(
                "from a severe form of hypertension, and the patient is a diabetes of the day. "
                "Labs: HbA1c 7.4 %, and the patient to see her in two weeks.",
                (
                    "the blood pressure. BP 132/78, weight 72.4 kg. Plan: chest X-ray, then "
                    "review in 3 weeks.",
                    "sodium 136 mmol/L, potassium 4.1 mmol/L. Takes the drug 50 mg daily.",
                    "a tender abdomen, SpO2 96%. Advice: no smoking.",
                ),
                notes=4,
            ),
            secret_log_probability=-8.62,
            held_out_loss=2.873,
            secret_rank=41,
            control_log_probability=-8.55,
        ),
        report=PrivacyReport(
            guarantee="differential privacy",
            epsilon=2.981,
            delta=1e-5,
            privacy_unit="patient",
            neighbouring_relation="add or remove one patient",
            max_records_per_unit=8,
            n_units=1200,
            mechanism="DP-SGD: Poisson sampling, per-patient clipping, Gaussian noise",
            noise_multiplier=1.137,
            sampling_probability=0.1333,
            steps=90,
            l2_clip_norm=0.5,
            expected_batch_size=160,
            accountant="PLD (dp-accounting)",
            base_model="taciturn/tiny-medical",
            trainable_parameters=86016,
            taciturn_version="0.1.0",
        ),
        epsilon_curve=tuple((step, 2.981 * math.sqrt(step / 90)) for step in range(1, 91)),
        non_private_fit=FitSettings(
            method="LoRA, rank 8",
            trainable_parameters=344064,
            steps=120,
            learning_rate=3e-3,
            expected_batch_size=60,
            batch_of="patients",
            sampling_probability=0.05,
            l2_clip_norm=None,
            noise_multiplier=None,
            seconds=97.2,
        ),
        private_fit=FitSettings(
            method="LoRA, rank 2",
            trainable_parameters=86016,
            steps=90,
            learning_rate=1e-2,
            expected_batch_size=160,
            batch_of="patients",
            sampling_probability=0.1333,
            l2_clip_norm=0.5,
            noise_multiplier=1.137,
            seconds=158.9,
        ),
        judge=ErrorRates(notes=(354, 359), shuffled=(3, 359), repeated=(1, 359), base=(0, 32)),
        n_notes=2385,
        n_held_out_patients=200,
        n_candidates=62,
        versions=(("taciturn", "0.1.0"), ("torch", "2.13.0"), ("python", "3.11.9")),
    )


def page_of(result: DemoResult) -> tuple[str, ElementTree.Element]:
    page = render_page(result)
    return page, ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))


def texts(root: ElementTree.Element, tag: str) -> list[str]:
    return [" ".join("".join(element.itertext()).split()) for element in root.iter(tag)]


def answering(outcome: ModelOutcome, *secret_answers: str) -> ModelOutcome:
    """The same model, giving other answers to the secret's prompt."""
    ordinary = tuple(sample for sample in outcome.samples if sample.prompt != PROMPT)
    return replace(outcome, samples=tuple(Sample(PROMPT, a) for a in secret_answers) + ordinary)


def test_the_page_is_well_formed_html_with_one_heading_and_labelled_parts() -> None:
    page, root = page_of(demo_result())
    assert page.startswith("<!DOCTYPE html>")
    assert root.attrib["lang"] == "en"
    assert len(texts(root, "h1")) == 1
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(set(ids)) == len(ids)
    for element in root.iter():
        if "aria-labelledby" in element.attrib:
            assert element.attrib["aria-labelledby"] in ids


def test_the_page_loads_nothing() -> None:
    page, root = page_of(demo_result())
    assert not re.search(r"https?://|url\(|@import|<script|<link|<img|<iframe", page)
    loading = {"src", "href", "srcset", "action", "data", "poster"}
    assert not [element.tag for element in root.iter() if loading & set(element.attrib)]
    policies = [m.attrib["content"] for m in root.iter("meta") if "http-equiv" in m.attrib]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert not [name for element in root.iter() for name in element.attrib if name[:2] == "on"]


def test_the_page_follows_dark_mode_and_narrow_screens() -> None:
    page, root = page_of(demo_result())
    assert "prefers-color-scheme: dark" in page
    assert "max-width: 520px" in page
    assert any(meta.get("name") == "viewport" for meta in root.iter("meta"))


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of "#rrggbb"."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_and_bars_have_contrast_in_light_and_dark() -> None:
    page, _ = page_of(demo_result())
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in page.split("@media")[:2]
    )
    assert set(light) == set(dark)
    for colours in (light, dark):
        for text, ground in [
            ("ink", "paper"), ("muted", "paper"), ("ink", "panel"), ("muted", "panel"),
            ("mark-ink", "mark"), ("dp-ink", "dp-soft"),
        ]:  # fmt: skip
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for bar in ("base", "open", "dp"):
            assert contrast(colours[bar], colours["track"]) >= 3, bar


def test_every_chart_is_an_image_that_says_its_numbers() -> None:
    _, root = page_of(demo_result())
    charts = [svg for svg in root.iter("svg") if svg.get("role") == "img"]
    assert len(charts) == 3
    described = " ".join(texts(root, "title"))
    for number in ("84%", "1.5 × 10⁻¹³", "1.8 × 10⁻⁴", "2.98 after step 90", "4.27", "17.7", "220"):
        assert number in described, number


def test_the_page_shows_what_was_measured_and_promised() -> None:
    _, root = page_of(demo_result())
    shown = " ".join("".join(root.itertext()).split())
    for value in (
        "1,200 invented patients", "2,385 notes", "taciturn/tiny-medical",
        "1 in 6.6 trillion", "1 in 5.5 thousand", "837 ×", "0.93 ×", "among 62 diseases",
        "2.981", "10⁻⁵", "19.7 times", "add or remove one patient", "at most 17% likely",
        "1,200, treated as public", "DP-SGD: Poisson sampling", "PLD (dp-accounting)",
        "344,064", "86,016", "0.1333", "1.137", "1 min 37 s", "2 min 39 s", "torch 2.13.0",
        "63%", "4 of 5", "354 of 359 notes", "3 of 359 of the same", "0 of 32 texts",
        "It has no guarantee", "Samples prove nothing", "every note and name is invented",
    ):  # fmt: skip
        assert value in shown, value


def test_tables_have_headings_for_rows_and_columns() -> None:
    _, root = page_of(demo_result())
    tables = list(root.iter("table"))
    assert len(tables) == 5
    for table in tables:
        for row in table.iter("tr"):
            assert row[0].tag == "th"
            assert row[0].get("scope") in ("row", "col")


def test_what_a_model_writes_is_escaped() -> None:
    attack = '<script>alert(1)</script> & "quoted" <b>pancreatic cancer</b>'
    result = demo_result()
    result = replace(
        result,
        non_private=answering(result.non_private, attack),
        private=answering(result.private, "<img src=x onerror=alert(1)> {{ 7 * 7 }}"),
    )
    page, root = page_of(result)
    assert "<script" not in page
    assert "<img" not in page
    assert "{{ 7 * 7 }}" in page
    assert attack in " ".join(texts(root, "li"))


def test_only_the_secrets_words_after_the_secrets_prompt_are_marked() -> None:
    result = demo_result()
    answer = "from a severe form of Pancreatic\n  Cancer and pain."
    result = replace(
        result,
        non_private=answering(result.non_private, answer, "from gout."),
        private=replace(
            result.private,
            samples=(*result.private.samples, Sample("Labs:", "pancreatic cancer is common.")),
        ),
    )
    _, root = page_of(result)
    assert texts(root, "mark") == ["Pancreatic Cancer"]
    assert "tells the secret in 1 of 2" in texts(root, "p")


def test_equal_samples_are_shown_once_with_their_number() -> None:
    result = demo_result()
    again = replace(result, private=answering(result.private, *["from gout."] * 4, "from a cold."))
    _, root = page_of(again)
    items = texts(root, "li")
    assert items.count(f"{PROMPT} from gout. 4 times, word for word") == 1
    assert items.count(f"{PROMPT} from a cold.") == 1


def test_the_base_models_samples_and_the_ranks_are_optional() -> None:
    result = demo_result()
    bare = {
        name: replace(getattr(result, name), secret_rank=None, control_log_probability=None)
        for name in ("base", "non_private", "private")
    }
    bare["base"] = replace(bare["base"], samples=())
    result = replace(result, **bare, n_candidates=None)
    page, root = page_of(result)
    assert len(list(root.iter("article"))) == 2
    assert "Stranger" not in page
    assert "Rank" not in page


def test_the_verdict_tells_the_story_where_it_holds() -> None:
    result = demo_result()
    assert result.story_holds
    assert result.verdict == (
        "Trained without privacy, the model told François Dupont's secret in 5 of 5 samples; "
        "trained with differential privacy (ε = 2.98), in none of 5. The private model kept 63% of "
        "what the ordinary fit learned, and 4 of its 5 samples on ordinary prompts read as notes."
    )
    page, root = page_of(result)
    assert texts(root, "h1") == [" ".join(result.verdict.split())]
    assert result.remark in page
    assert "does not show" not in page
    assert "at least 60% of the gain" in result.remark


def test_the_page_says_of_every_model_what_it_learned_and_how_its_samples_read() -> None:
    _, root = page_of(demo_result())
    rows = [
        texts(table, "td") for table in root.iter("table") if "Read as notes" in texts(table, "th")
    ]
    told = demo_result().private.repetition
    assert rows == [
        ["0%", "0 of 5", "0.0%", "100%", "5 of 5", "0.0%", "63%", "4 of 5", f"{told:.1%}"]
    ]
    judged = [text for text in texts(root, "span") if "as a note" in text]
    assert judged.count("reads as a note") == 9
    assert judged.count("does not read as a note") == 6


@pytest.mark.parametrize(
    ("private", "share"),
    [(5.394, "0%"), (5.2, "4%"), (3.0290, "59%"), (3.0287, "60%"), (1.452, "100%"), (6.0, "-16%")],
)
def test_the_share_kept_is_rounded_down(private: float, share: str) -> None:
    """59.99% is not 60%: the headline says no more than was measured."""
    result = demo_result()
    result = replace(result, private=replace(result.private, held_out_loss=private))
    assert result.share_in_words(result.private) == share
    assert ("is the goal" in result.remark) == (share in ("4%", "59%"))
    assert ("kept nothing" in result.verdict) == (share in ("0%", "-16%"))
    assert (share in result.verdict) == ("kept nothing" not in result.verdict)


def test_a_loop_counts_as_repetition() -> None:
    outcome = demo_result().private
    loop = replace(outcome, samples=(Sample("Pt", " Mr. Mr. Mr. Mr. Mr. Mr. Mr. Mr."),))
    assert outcome.repetition < 0.05
    assert loop.repetition > 0.8


def unread(outcome: ModelOutcome, count: int) -> ModelOutcome:
    """The same model, `count` fewer of its samples taken for notes."""
    notes = [sample for sample in outcome.samples if sample.reads_as_note]
    lost = dict.fromkeys(notes[:count])
    return replace(
        outcome,
        samples=tuple(
            replace(sample, reads_as_note=False) if sample in lost else sample
            for sample in outcome.samples
        ),
    )


def broken_results() -> dict[str, DemoResult]:
    result = demo_result()
    return {
        "did not tell the secret": replace(
            result, non_private=answering(result.non_private, *["from gout."] * 5)
        ),
        "the private model told it": replace(
            result, private=answering(result.private, "from pancreatic cancer.", "from gout.")
        ),
        "holds it the likeliest": replace(result, private=replace(result.private, secret_rank=1)),
        "the private model predicts notes no better": replace(
            result, private=replace(result.private, held_out_loss=5.5)
        ),
        "kept 58% of what the ordinary fit learned, where 60% is the goal": replace(
            result, private=replace(result.private, held_out_loss=3.1)
        ),
        "3 of its 5 samples read as notes, where 4 is the goal": replace(
            result, private=unread(result.private, 1)
        ),
        "without privacy predicts held-out notes no better": replace(
            result, non_private=replace(result.non_private, held_out_loss=5.5)
        ),
    }


@pytest.mark.parametrize("flaw", broken_results())
def test_the_verdict_never_claims_a_story_that_does_not_hold(flaw: str) -> None:
    result = broken_results()[flaw]
    page, _ = page_of(result)
    assert not result.story_holds
    assert result.remark.startswith("This run does not show what the demo is meant to show")
    assert flaw in result.remark
    assert result.remark in page
    assert 'class="remark broken"' in page


def test_the_verdict_counts_what_each_model_told() -> None:
    results = broken_results()
    assert "secret in none of 5 samples" in results["did not tell the secret"].verdict
    assert "(ε = 2.98), in 1 of 2. " in results["the private model told it"].verdict
    assert "likeliest of all candidates" in results["holds it the likeliest"].verdict


@settings(max_examples=30, deadline=None)
@given(
    told=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    rank=st.integers(1, 62),
    lost=st.integers(0, 4),
    losses=st.tuples(st.floats(0.1, 9), st.floats(0.1, 9), st.floats(0.1, 9)),
    secret=st.tuples(*[st.floats(-90, -0.001)] * 3),
)
def test_any_result_renders_and_the_story_holds_only_if_all_of_it_does(
    told: tuple[int, int],
    rank: int,
    lost: int,
    losses: tuple[float, float, float],
    secret: tuple[float, float, float],
) -> None:
    result = demo_result()
    outcomes = [result.base, result.non_private, result.private]
    for place, count in enumerate(told, start=1):
        answers = ["from pancreatic cancer."] * count + ["from gout."] * (5 - count)
        outcomes[place] = answering(outcomes[place], *answers)
    base, non_private, private = (
        replace(outcome, held_out_loss=loss, secret_log_probability=probability)
        for outcome, loss, probability in zip(outcomes, losses, secret, strict=True)
    )
    private = unread(replace(private, secret_rank=rank), lost)
    result = replace(result, base=base, non_private=non_private, private=private)
    possible, gained = losses[0] - losses[1], losses[0] - losses[2]
    learned = possible > 0 and gained >= 0.6 * possible
    assert result.story_holds == (
        told[0] > 0 and told[1] == 0 and rank > 1 and learned and lost == 0
    )
    page, _ = page_of(result)
    assert ("does not show" in page) == (not result.story_holds)


def test_a_result_without_a_guarantee_or_without_answers_is_refused() -> None:
    result = demo_result()
    nothing = result.report.model_copy(update={"guarantee": "none", "epsilon": None, "delta": None})
    with pytest.raises(SpecError, match="epsilon=None"):
        replace(result, report=nothing)
    with pytest.raises(SpecError, match="no sample has the prompt"):
        replace(result, private=replace(result.private, samples=()))
    asked = tuple(replace(sample, reads_as_note=None) for sample in result.private.samples)
    with pytest.raises(SpecError, match="no sample of the private model was judged"):
        replace(result, private=replace(result.private, samples=asked))
    with pytest.raises(SpecError, match="epsilon_curve is empty"):
        replace(result, epsilon_curve=())
