"""What models are worth is measured once, by figures that are what they are called."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evidence.corpus import SECRET_TELLINGS, TEXT, UNIT, Corpus, phee
from evidence.figures import Table, keep
from evidence.ordinary import Setting, add_gradients, attach, restore, search, train
from evidence.peers import Units, opacus_gradients, weighted_nats
from evidence.records import Records, Row, digest
from evidence.scores import Score, inner_tokens, score
from evidence.tables import quoted
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.data.tokens.tokenize import prepare
from taciturn.embedded import TINY_MEDICAL
from taciturn.engine.evaluation.likelihood import likelihood
from taciturn.engine.model.load import LoadedModel, load_base
from taciturn.spec import DataSpec, PerformanceSpec

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ("A cough was seen.", "No.", "The patient has had a long and unusual cough since last May.")


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> LoadedModel:
    return load_base(str(tiny_llama), PerformanceSpec())


def fresh(folder: Path) -> LoadedModel:
    return load_base(str(folder), PerformanceSpec())


def test_nothing_is_measured_twice(tmp_path: Path) -> None:
    records = Records(tmp_path / "results.jsonl")
    calls: list[int] = []

    def measure() -> Row:
        calls.append(1)
        return {"nats": 4.5}

    key = {"stage": "private", "epsilon": 3.0, "model": {"name": "x"}}
    assert records.measured(key, measure) == records.measured(key, measure)
    assert len(calls) == 1
    assert records.measured({**key, "epsilon": 1.0}, measure)["nats"] == 4.5
    assert len(calls) == 2
    assert len(records.rows(stage="private", model={"name": "x"})) == 2
    assert len(records.rows(epsilon=3.0)) == 1


def test_a_line_that_a_killed_process_left_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    records = Records(path)
    records.measured({"seed": 0}, lambda: {"nats": 1.0})
    whole = path.read_text()
    path.write_text(whole + '{"key": {"seed": 1}, "na')
    assert records.measured({"seed": 1}, lambda: {"nats": 2.0})["nats"] == 2.0
    assert [json.loads(line)["nats"] for line in path.read_text().splitlines()] == [1.0, 2.0]


def test_inner_tokens_are_the_same_after_any_start() -> None:
    """Start 1, end 2: of five tokens of a text the last three."""
    text = [11, 12, 13, 14, 15]
    for record, first in (([1, *text, 2], 1), ([*text, 2], 0)):
        ids_BT = torch.tensor([record[1:]])
        assert ids_BT[inner_tokens(ids_BT, first, 2)].tolist() == [13, 14, 15]


def test_scores_are_those_of_the_product(base: LoadedModel, tmp_path: Path) -> None:
    data = prepare(list(TEXTS), DataSpec(), base.tokenizer, 100, tmp_path / "data", 0)
    expected = likelihood(base.model, data, 100)
    found = score(base, base.model, TEXTS)
    assert found.nats == pytest.approx(expected.nats_per_token, rel=1e-5)
    assert found.tokens == expected.tokens
    texts = base.tokenizer(list(TEXTS), add_special_tokens=False)["input_ids"]
    assert found.inner_tokens == sum(max(0, len(ids) - 2) for ids in texts)


def test_the_secret_is_one_report_more(tmp_path: Path) -> None:
    for name in ("train", "dev", "test"):
        rows = [{"id": f"{unit}_{number}", "context": name} for unit in (1, 2) for number in (1, 2)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    without, with_it = (phee(tmp_path, secret=secret) for secret in (False, True))
    assert (without.n_units, with_it.n_units) == (2, 3)
    assert [text for _, text in with_it.train[-len(SECRET_TELLINGS) :]] == list(SECRET_TELLINGS)
    assert without.digest() != with_it.digest()
    # What is chosen by does not follow from the test file, nor is that read.
    (tmp_path / "test.jsonl").unlink()
    again = phee(tmp_path, secret=True)
    assert again.digest() == with_it.digest()
    written = [json.loads(line) for line in again.write(tmp_path / "work").read_text().splitlines()]
    assert [(row[UNIT], row[TEXT]) for row in written] == list(again.train)


def test_the_search_leaves_no_best_at_the_edge() -> None:
    tried: list[Setting] = []

    def run(setting: Setting) -> float:
        tried.append(setting)
        off = abs(np.log10(setting.rate) + 2) + (setting.method == "full")
        return float(off + 0.1 * abs(setting.epochs - 6))

    best = search(run, (Setting("full", 1e-4), Setting("lora", 1e-3, rank=16)))
    assert (best.method, best.epochs) == ("lora", 6)
    assert best.rate == pytest.approx(1e-2, rel=0.05)
    assert len(set(tried)) == len(tried)
    assert max(each.rate for each in tried if each.method == "lora") > 1.5 * best.rate
    assert {12, 3} <= {each.epochs for each in tried}


def _records(path: Path, *, scored: bool = True) -> Records:
    """Records of one model: base 5 nats, ordinary 3, epsilon 3 twice, of which dev prefers 4."""
    records, subject = Records(path), {"model": {"name": "m"}, "data": "d"}
    peer = {"peer": "opacus", "version": "1.6.0", "rank": 4}
    fits: list[tuple[Row, float, float | None, Row]] = [
        ({"stage": "ordinary", "rank": None, "epochs": 3}, 2.9, 3.0, {"best_epoch": 2.5}),
        ({"stage": "private", "epsilon": 3.0, "seed": 0}, 3.9, 4.0, {}),
        ({"stage": "private", "epsilon": 3.0, "seed": 1}, 4.1, 3.5, {}),
        ({"stage": "private", "epsilon": 8.0, "seed": 0}, 3.4, 3.5, {}),
        ({"stage": "private", "epsilon": 1.0, "seed": 0}, 4.9, None, {}),
        ({"stage": "peer", "epsilon": 3.0, "steps": 40, "batch": 512, **peer}, 4.4, 4.2, {}),
    ]
    about = {"steps": 40, "batch": 512, "delta": 1e-5, "n_units": 1109}
    tests = {"base": 5.0}
    for key, dev, test, more in fits:
        found = {"dev": {"nats": dev}, **about, **more}
        row = records.measured({**subject, **key}, lambda found=found: found)
        if test is not None:
            tests[digest(row["key"])] = test
    for of, nats in tests.items() if scored else ():
        final = {**subject, "stage": "final", "test": "t", "of": of}
        records.measured(final, lambda nats=nats: {"test": {"nats": nats}})
    return records


def test_documents_quote_what_was_chosen_on_dev_and_scored_on_test(tmp_path: Path) -> None:
    figures = quoted(_records(tmp_path / "results.jsonl"), "m")
    assert figures["worth"][1:] == [
        ["base", "", "5.000", "0%"],
        ["no privacy", "full fine-tuning, 2.5 of 3 epochs", "3.000", "100%"],
        ["epsilon = 8", "40 steps of 512 units", "3.500", "75%"],
        ["epsilon = 3", "40 steps of 512 units", "4.000", "50%"],
    ]
    peer = "opacus 1.6.0, LoRA r = 4, epsilon = 3"
    assert figures["peers"][1:] == [[peer, "40 steps of 512 units", "4.200", "40%"]]
    assert figures["shares"] == {"8": 0.75, "3": 0.5}
    assert (figures["delta"], figures["units"]) == (1e-5, 1109)


def test_nothing_is_quoted_of_a_model_that_was_not_scored_on_test(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--final"):
        quoted(_records(tmp_path / "results.jsonl", scored=False), "m")


def test_documents_quote_what_the_records_say() -> None:
    said = json.loads((ROOT / "bench" / "results" / "phee.json").read_text(encoding="utf-8"))
    records = Records(ROOT / "bench" / "results" / "phee.jsonl")
    assert said.items() >= quoted(records, TINY_MEDICAL).items()


def test_a_results_file_says_how_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.json"
    monkeypatch.setattr("sys.argv", ["/somewhere/bench/x.py", "--seed", "1", "--out", str(out)])
    table = Table("fit", "nats")
    table.add("a", "4.28")
    keep(out, {"fits": table.rows})
    assert capsys.readouterr().out == "\n| fit | nats |\n| --- | --- |\n| a | 4.28 |\n"
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["command"] == "python bench/x.py --seed 1"
    assert found["fits"] == [["fit", "nats"], ["a", "4.28"]]
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
    assert {"date", "machine", "versions"} <= found.keys()


def _corpus() -> Corpus:
    train = tuple((f"u{number}", f"patient {number} has a cough.") for number in range(12))
    return Corpus("test", train, TEXTS, lambda: TEXTS)


class _KilledError(Exception):
    pass


def test_a_killed_run_goes_on_where_it_was(tiny_llama: Path, tmp_path: Path) -> None:
    setting = Setting("lora", 1e-2, epochs=2, rank=4, records=5)
    texts = [text for _, text in _corpus().train]
    data = _prepared(fresh(tiny_llama), texts, tmp_path / "data")

    def run(folder: Path, killed_after: int | None = None) -> Any:
        calls: list[int] = []

        def judge(_: nn.Module) -> Score:
            calls.append(1)
            if len(calls) == killed_after:
                raise _KilledError
            return Score(0.0, 0.0, 1, 1)

        model = attach(fresh(tiny_llama).model, setting, 0)
        train(model, data, setting, judge, folder, 0)
        return restore(attach(fresh(tiny_llama).model, setting, 0), folder, "last")

    with pytest.raises(_KilledError):
        run(tmp_path / "killed", killed_after=3)
    resumed = run(tmp_path / "killed").state_dict()
    straight = run(tmp_path / "straight").state_dict()
    assert all(torch.equal(value, straight[name]) for name, value in resumed.items())


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]])
def test_parts_of_a_batch_have_its_gradient(
    tiny_llama: Path, tmp_path: Path, texts: tuple[str, ...]
) -> None:
    """Transformers' own loss of one padded batch is the mean over its tokens."""
    base = fresh(tiny_llama)
    data = _prepared(base, list(texts), tmp_path / "data")
    records = [record for unit in range(data.n_units) for record in data.records(unit)]
    rows = [torch.tensor(record.input_ids).long() for record in records]
    padded = partial(nn.utils.rnn.pad_sequence, rows, batch_first=True)
    model = base.model.requires_grad_(True).eval()
    model(input_ids=padded(), labels=padded(padding_value=-100)).loss.backward()
    expected = {name: each.grad for name, each in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    add_gradients(model, records)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7)


def _prepared(base: LoadedModel, texts: list[str], folder: Path) -> TokenizedDataset:
    return prepare(texts, DataSpec(), base.tokenizer, 100, folder, 0)


def _units(base: LoadedModel, folder: Path) -> Units:
    rows = [("a", TEXTS[0]), ("a", TEXTS[1]), ("b", TEXTS[2]), ("c", TEXTS[0])]
    path = Corpus("test", tuple(rows), TEXTS, lambda: TEXTS).write(folder)
    spec = DataSpec(text_field=TEXT, privacy_unit=UNIT)
    return Units(prepare(str(path), spec, base.tokenizer, 100, folder / "data", 0))


def test_a_unit_is_the_mean_of_its_records(base: LoadedModel, tmp_path: Path) -> None:
    units = _units(base, tmp_path)
    _, weights_RT, unit_of_R = units.rows([0, 1, 2])
    by_unit = torch.zeros(3).index_add(0, unit_of_R, weights_RT.sum(1))
    torch.testing.assert_close(by_unit, torch.ones(3))
    assert sorted(torch.bincount(unit_of_R).tolist()) == [1, 1, 2]
    for ids, weights in units.blocks([0, 1, 2], 2):
        assert ids.shape == weights.shape
        torch.testing.assert_close(weights.sum((1, 2)), torch.ones(len(ids)))
    assert units.rows([])[0].shape[0] == 0


def test_opacus_is_given_the_units_gradients(tiny_llama: Path, tmp_path: Path) -> None:
    """Those of the mean over a unit's records, as if it were there alone; none of an empty draw."""
    opacus = pytest.importorskip("opacus", reason="taciturn[bench] is not installed")
    base = fresh(tiny_llama)
    units = _units(base, tmp_path)
    model = attach(base.model, Setting("lora", 1e-3, rank=4), 0)
    own = [each for each in model.parameters() if each.requires_grad]
    with torch.no_grad():
        for each in own:
            each.add_(0.1)  # or the gradient of A would be zero
    plain = copy.deepcopy(model)
    module = opacus.GradSampleModule(model.train())
    opacus_gradients(module, units, [2, 0], own)
    found = [each.grad_sample.clone() for each in own]
    for at, unit in enumerate((2, 0)):
        ids_RT, weights_RT, _ = units.rows([unit])
        loss = weighted_nats(plain(input_ids=ids_RT).logits, ids_RT, weights_RT)
        its = [each for each in plain.parameters() if each.requires_grad]
        for by_unit, expected in zip(found, torch.autograd.grad(loss, its), strict=True):
            torch.testing.assert_close(by_unit[at], expected, rtol=1e-3, atol=1e-5)
    opacus_gradients(module, units, [], own)
    assert all(each.grad_sample.shape == (0, *each.shape) for each in own)
