"""A model goes to a hub and comes back, with its report; what is not released stays here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from support.hub_server import TOKEN, Hub, serving
from support.program import run_python
from taciturn.errors import CertificateError, GuaranteeError, OutputError, SpecError
from taciturn.llm import LLM
from taciturn.local.export.model_hub import fetched, push, released_files
from taciturn.reports.figures import Figure, ModelScore, ReleasedEvaluation, ReleasedFigures
from taciturn.reports.privacy import PrivacyReport, read_report
from taciturn.spec import PushSpec

QUICK: dict[str, Any] = {
    "target_epsilon": 50,
    "steps": 4,
    "batch_size": 4,
    "learning_rate": 0.05,
}
SCORE = ModelScore(nats_per_token=Figure(value=2.5, std=0.1), token_accuracy=Figure(value=0.5))
FIGURES = ReleasedFigures(
    evaluations=(ReleasedEvaluation(basis="public", n_units=3, base=SCORE, fitted=SCORE),)
)
_STORY = """
import sys
from taciturn.llm import LLM

folder, base = sys.argv[1:]
first = LLM(folder)
print(first.push_to_hub("org/adapter", message="as it was fitted"))
again = LLM("org/adapter", base=base)
assert again.privacy == first.privacy
assert again.policy == first.policy
prompt = ["The patient"]
for model in (first, again):
    print(model.sample(prompt, temperature=0, max_new_tokens=6)["text"][0].encode())
assert LLM("org/nothing").privacy is None
"""


def rows() -> list[str]:
    return [f"patient {i} has a cough" for i in range(8)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process speaks to."""
    from huggingface_hub import constants

    with serving() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        place = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + place)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield served


def send(folder: Path, repository: str = "org/adapter", **fields: Any) -> str:
    report = read_report(folder / "privacy_report.json")
    return push(folder, repository, report, FIGURES, PushSpec(**fields), TOKEN)


def test_story_of_a_model(folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    (folder / "private" / "secret.safetensors").write_bytes(b"rows")
    with serving() as served:
        environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
        environment |= {
            "HF_ENDPOINT": served.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
        }
        ran = run_python("-c", _STORY, str(folder), str(tiny_llama), environment=environment)
    assert ran.returncode == 0, ran.stderr
    address, *texts = ran.stdout.splitlines()
    assert address.endswith("/org/adapter")
    assert texts[0] == texts[1]
    repository = served.repositories["org/adapter"]
    assert repository.visibility == "private"
    assert repository.messages == ["as it was fitted"]
    assert set(repository.files) == {path.name for path in released_files(folder)}
    same = ("certificate.json", "adapter_model.safetensors", "privacy_report.json")
    for name in same:
        assert repository.files[name] == (folder / name).read_bytes()
    assert not any("private" in path for _, path in served.requests)


def test_card_says_what_a_hub_reads(folder: Path, hub: Hub) -> None:
    send(folder)
    card = ModelCard(hub.repositories["org/adapter"].files["README.md"].decode())
    assert card.data.library_name == "peft"
    assert "differential-privacy" in card.data.tags
    about = card.data.to_dict()["taciturn"]
    assert about["policy"] == read_report(folder / "privacy_report.json").policy
    assert len(about["certificate_sha256"]) == 64
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"cross_entropy": 2.5, "accuracy": 0.5}
    assert card.data.model_name == "adapter"


def test_what_is_not_released_stays_here(folder: Path, hub: Hub) -> None:
    """By structure: names are looked up, and the folder is not walked."""
    for name in ("rows.csv", "notes.bin", "model.pt", "data.safetensors", "tool.py"):
        (folder / name).write_text("rows")
    for path in folder.glob("*"):
        if path.name in ("notes.bin", "model.pt", "data.safetensors", "tool.py"):
            path.unlink()  # the certificate does not cover them, and a push is refused for it
    send(folder)
    assert "rows.csv" not in hub.repositories["org/adapter"].files
    (folder / "tool.py").write_text("import os")
    with pytest.raises(CertificateError, match=r"tool\.py"):
        send(folder)
    (folder / "tool.py").unlink()
    (folder / "vocab.txt").symlink_to(folder / "private" / "run.json")
    (folder / "private" / "run.json").write_text("rows")
    (folder / "certificate.json").unlink()
    with pytest.raises(GuaranteeError, match="leads into a private folder"):
        send(folder)


def test_what_an_earlier_model_left_goes(folder: Path, hub: Hub) -> None:
    send(folder)
    files = hub.repositories["org/adapter"].files
    files |= {"audit.json": b"{}", "model-00001-of-00002.safetensors": b"", "theirs.md": b"a"}
    send(folder, message="again")
    assert "theirs.md" in files
    assert not {"audit.json", "model-00001-of-00002.safetensors"} & set(files)


def test_refusals(folder: Path, hub: Hub) -> None:
    for name in ("a/b/c", "has space", "", 3):
        with pytest.raises(SpecError, match="repository"):
            send(folder, name)  # type: ignore[arg-type]
    report = PrivacyReport.model_validate(
        json.loads((folder / "privacy_report.json").read_text()) | {"guarantee": "none"}
    )
    with pytest.raises(GuaranteeError, match="without_guarantee"):
        push(folder, "org/adapter", report, FIGURES, PushSpec(), TOKEN)
    assert hub.requests == []
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CertificateError, match="not the file that was certified"):
        send(folder)
    (folder / "certificate.json").unlink()
    push(folder, "org/adapter", report, FIGURES, PushSpec(without_guarantee=True), TOKEN)
    assert "certificate.json" not in hub.repositories["org/adapter"].files


def test_hub_that_refuses_says_what_to_do_and_no_token(folder: Path, hub: Hub) -> None:
    hub.refuses_commits = True
    with pytest.raises(OutputError, match="hf auth login") as refusal:
        send(folder)
    assert TOKEN not in str(refusal.value)
    assert hub.repositories["org/adapter"].files == {}


def test_names_that_no_hub_has_are_not_asked_for(hub: Hub) -> None:
    for name in ("tiny", "./org/adapter", "a/b/c", "gateway:x"):
        assert fetched(name) is None
    assert hub.requests == []
    assert fetched("org/base") is None
    assert len(hub.requests) == 1


def test_base_model_is_not_pushed() -> None:
    from taciturn.errors import AdapterError

    with pytest.raises(AdapterError, match="nothing to push"):
        LLM("taciturn/tiny-medical").push_to_hub("org/adapter")
