"""Tables of what fits are worth, on dev or, once all was chosen, on test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evidence.bench import Bench
from evidence.records import Records, Row, digest

ORDINARY = "no privacy"

Models = Mapping[str, Row | None]
"""Label -> row of what stands in a table; None is the base, whose label is "base"."""

Scores = Mapping[str, Mapping[str, float]]
"""Label -> score."""


def on_dev(bench: Bench, models: Models) -> Scores:
    """The scores that choices were made by."""
    return {label: (bench.base() if row is None else row)["dev"] for label, row in models.items()}


def final(bench: Bench, models: Models, wanted: Sequence[str]) -> Scores:
    """Scores of the chosen models on test; nothing is chosen after this.

    Raises SystemExit if one of those that are wanted was not fitted yet: test was not read then.
    """
    missing = [label for label in wanted if label not in models]
    if missing:
        raise SystemExit(
            f"nothing was fitted yet for: {', '.join(missing)}; the test file is read once all "
            "was chosen, so run those stages first"
        )
    texts = bench.corpus.test()
    about = {**bench.subject, "stage": "final", "test": digest(texts)}
    found = {}
    for label, row in models.items():
        key = {**about, "of": "base" if row is None else digest(row["key"])}
        found[label] = bench.records.measured(key, _judge(bench, row, texts))["test"]
    others = len(bench.records.rows(**about)) - len(found)
    if others:
        print(f"(the test file was read for {others} other models, too)\n")
    return found


def _judge(bench: Bench, row: Row | None, texts: Sequence[str]) -> Callable[[], Row]:
    return lambda: {"test": bench.score(row, texts).as_row()}


def table(bench: Bench, models: Models, scores: Scores) -> str:
    """Nats and shares of the non-private gain, of all tokens and of inner ones, as Markdown."""
    lines = [
        "| fit | nats per token | share of the gain | inner tokens | share | trained | how "
        "| minutes | fits tried |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, row in models.items():
        cells = [label]
        for kind in ("nats", "inner"):
            cells += [f"{scores[label][kind]:.3f}", _share(scores, label, kind)]
        lines.append("| " + " | ".join(cells + _about(bench, row)) + " |")
    return "\n".join(lines)


def quoted(records: Records, model: str) -> dict[str, Any]:
    """Return the figures on test that documents quote, ours and those of other libraries.

    They follow from the records alone: neither corpus nor models need be there. Of several fits
    with one label that were scored on test, the best on dev counts.

    Args:
        model: its name in the records.
    """
    finals = [row for row in records.rows(stage="final") if row["key"]["model"]["name"] == model]
    if not finals:
        raise SystemExit(
            f"{records.path} has no scores of {model} on test.jsonl: run --final first"
        )
    about = {name: value for name, value in finals[-1]["key"].items() if name != "of"}
    tests = {row["key"]["of"]: row["test"]["nats"] for row in records.rows(**about)}
    subject = {name: about[name] for name in ("model", "data")}
    fits = [row for row in records.rows(**subject) if digest(row["key"]) in tests]
    chosen: dict[str, Row] = {}
    for row in sorted(fits, key=lambda row: row["dev"]["nats"]):
        chosen.setdefault(_label(row["key"]), row)
    nats = {label: tests[digest(row["key"])] for label, row in chosen.items()}
    base, ordinary = tests["base"], nats[ORDINARY]
    shares = {label: share(base, ordinary, value) for label, value in nats.items()}
    head = ["fit", "how", "held-out nats per token", "share of the gain without privacy"]
    worth, peers = [head, ["base", "", f"{base:.3f}", "0%"]], [head]
    for label in sorted(chosen, key=lambda label: _order(chosen[label]["key"])):
        rows = peers if chosen[label]["key"]["stage"] == "peer" else worth
        rows.append([label, _how(chosen[label]), f"{nats[label]:.3f}", f"{shares[label]:.0%}"])
    private = [row for row in chosen.values() if row["key"]["stage"] == "private"]
    return {
        "worth": worth,
        "peers": peers,
        "shares": {f"{row['key']['epsilon']:g}": shares[_label(row["key"])] for row in private},
        "delta": private[0]["delta"],
        "units": private[0]["n_units"],
    }


def _label(key: Row) -> str:
    if key["stage"] == "ordinary":
        return ORDINARY
    private = f"epsilon = {key['epsilon']:g}"
    if key["stage"] == "private":
        return private
    return f"{key['peer']} {key['version']}, LoRA r = {key['rank']}, {private}"


def _order(key: Row) -> tuple[bool, float, str]:
    """Order the ordinary fit before private ones, and larger epsilons before smaller ones."""
    return key["stage"] != "ordinary", -key.get("epsilon", 0), _label(key)


def _how(row: Row) -> str:
    key = row["key"]
    if key["stage"] == "ordinary":
        method = "full fine-tuning" if key["rank"] is None else f"LoRA r = {key['rank']}"
        stopped = "" if row["best_epoch"] == key["epochs"] else f"{row['best_epoch']:g} of "
        return f"{method}, {stopped}{key['epochs']} epochs"
    source = row if key["stage"] == "private" else key
    return f"{source['steps']} steps of {source['batch']:,} units"


def share(base: float, ordinary: float, fitted: float) -> float:
    """Of what an ordinary fit gains over the base, what another one gains."""
    return (base - fitted) / (base - ordinary)


def _share(scores: Scores, label: str, kind: str) -> str:
    if ORDINARY not in scores:
        return "?"
    base, ordinary = scores["base"][kind], scores[ORDINARY][kind]
    return f"{share(base, ordinary, scores[label][kind]):.0%}"


def _about(bench: Bench, row: Row | None) -> list[str]:
    if row is None:
        return ["", "", "", ""]
    key = row["key"]
    alike = ("stage", "seed", "epsilon", "peer", "rank") if "peer" in key else ("stage", "seed")
    alike = (*alike, "epsilon") if key["stage"] == "private" else alike
    if key["stage"] == "private":
        how = f"{row['steps']} x {row['batch']}"
    elif key["stage"] == "peer":
        how = f"{key['steps']} x {key['batch']}, rate {key['rate']:g}"
    else:
        of = f"{key['method']}, rate {key['rate']:g}"
        how = f"{of}, stopped at {row['best_epoch']:.1f} of {key['epochs']} epochs"
    tried = len(bench.records.rows(**bench.subject, **{name: key[name] for name in alike}))
    return [f"{row['trained']:,}", how, f"{row['minutes']:.0f}", str(tried)]
