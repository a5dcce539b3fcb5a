"""OpenAI's clients fine-tune through a gateway, with the code that the documents show."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

import taciturn
from support import code_blocks
from support.tiny_tokenizers import CHATML
from taciturn.demo import gateway as demo
from taciturn.embedded import preference_pairs
from worker.jobs import facts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "coming-from-openai.md"
SECRET = "Ms Secret"
CHAT_BASE = "ward/chat"

pytestmark = [pytest.mark.timeout(1800), pytest.mark.thorough]


def blocks(language: str) -> list[str]:
    """The page's code in a language: the owner's, and the practitioner's."""
    page = code_blocks.blocks(PAGE.read_text("utf-8"))
    code = [block.code for block in page if block.language == language]
    assert len(code) == 2
    return code


@pytest.fixture(scope="module")
def chat_base(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base whose tokenizer has a chat template, where Hugging Face keeps downloads."""
    from transformers import AutoTokenizer

    cache = tmp_path_factory.mktemp("cache") / f"models--{CHAT_BASE.replace('/', '--')}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("1" * 40)
    folder = Path(shutil.copytree(tiny_llama, cache / "snapshots" / ("1" * 40)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gateway(
    chat_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[demo.DemoGateway]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(chat_base.parents[2]))
        running = demo.start(n_patients=10)
    store = tmp_path_factory.mktemp("store")
    running.client("admin").admin.change_user("olivia", sources=[str(store)])
    yield running
    running.stop()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file that is uploaded: 60 customers, two lines each, as completions, for
    the embedded model has no chat template."""
    folder = tmp_path_factory.mktemp("work")
    texts = {"prompt": f"{SECRET} asks where it is.", "completion": " It is on its way."}
    lines = [json.dumps({"customer": f"c{n // 2}", **texts}) for n in range(120)]
    (folder / "support.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def run(command: list[str], gateway: demo.DemoGateway, person: str, folder: Path) -> str:
    """Output of a program of somebody's."""
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": f"{gateway.url}/openai/v1",
        "OPENAI_API_KEY": gateway.token(person),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def story(gateway: demo.DemoGateway, work: Path, command: list[str], pages: list[Path]) -> None:
    """Upload, grant, create, wait, events, chat; then what the others see of it."""
    upload, fit = pages
    told = run([*command, str(upload)], gateway, "olivia", work)
    file, status = told.split()
    assert status == "processed"
    gateway.client("olivia").grant("support", "user:pia", epsilon=8, delta=1e-5)
    told = run([*command, str(fit), file], gateway, "pia", work)
    assert "succeeded model_" in told
    assert "info The model is made" in told
    assert SECRET not in told
    pia = openai.OpenAI(base_url=f"{gateway.url}/openai/v1", api_key=gateway.token("pia"))
    (job, *_) = pia.fine_tuning.jobs.list(limit=1).data
    assert job.fine_tuned_model in {model.id for model in pia.models.list()}
    (checkpoint,) = pia.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.fine_tuned_model_checkpoint == job.fine_tuned_model
    assert checkpoint.metrics.train_loss is None
    events = list(pia.fine_tuning.jobs.list_events(job.id, limit=3))
    assert len(events) > 3
    assert SECRET not in "".join(event.to_json() for event in events)
    amir = openai.OpenAI(base_url=f"{gateway.url}/openai/v1", api_key=gateway.token("amir"))
    for ask in (amir.fine_tuning.jobs.retrieve, amir.fine_tuning.jobs.cancel):
        with pytest.raises(openai.NotFoundError):
            ask(job.id)
    with pytest.raises(openai.PermissionDeniedError):
        pia.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")


def test_pythons_client(gateway: demo.DemoGateway, work: Path) -> None:
    pages = [work / "upload.py", work / "fit.py"]
    for page, code in zip(pages, blocks("python"), strict=True):
        page.write_text(code, encoding="utf-8")
    story(gateway, work, [sys.executable], pages)
    cancel_another(gateway)


def cancel_another(gateway: demo.DemoGateway) -> None:
    """Ask for a fit of the same file that takes long, and end it."""
    pia = openai.OpenAI(base_url=f"{gateway.url}/openai/v1", api_key=gateway.token("pia"))
    terms = {"steps": 5000, "batch_size": 20, "target_epsilon": 0.5}
    job = pia.fine_tuning.jobs.create(
        model="taciturn/tiny-medical",
        training_file=pia.files.list().data[0].id,
        metadata={name: str(value) for name, value in terms.items()},
    )
    assert pia.fine_tuning.jobs.cancel(job.id).status in ("cancelled", "queued", "running")
    until = time.monotonic() + 600
    while pia.fine_tuning.jobs.retrieve(job.id).status != "cancelled":
        assert time.monotonic() < until
        time.sleep(0.5)


def succeeded(client: openai.OpenAI, job: FineTuningJob) -> FineTuningJob:
    """The job once it is over."""
    until = time.monotonic() + 900
    while job.status in ("validating_files", "queued", "running"):
        assert time.monotonic() < until
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    return job


def test_preferences(gateway: demo.DemoGateway, work: Path) -> None:
    """Pairs that are in the owner's store; a job of OpenAI's method "dpo", to the end."""
    olivia = gateway.client("olivia")
    (work / "pairs.jsonl").write_text(
        "\n".join(json.dumps(row) for row in preference_pairs(n_patients=20)), encoding="utf-8"
    )
    gateway.client("admin").admin.change_user("olivia", sources=[f"{work}/"])
    olivia.add_dataset(
        "pairs",
        str(work / "pairs.jsonl"),
        unit="patient_id",
        namespace="readers",
        units=20,
        columns=["prompt", "chosen", "rejected", "patient_id"],
        epsilon=8,
        delta=1e-5,
    )
    olivia.grant("readers", "user:pia", epsilon=8, delta=1e-5)
    pia = openai.OpenAI(base_url=f"{gateway.url}/openai/v1", api_key=gateway.token("pia"))
    pia.files.wait_for_processing("pairs", poll_interval=0.5, max_wait_seconds=120)
    terms: dict[str, Any] = {"beta": 0.2, "steps": 2, "batch_size": 10, "target_epsilon": 3}
    job = pia.fine_tuning.jobs.create(
        model="taciturn/tiny-medical",
        training_file="pairs",
        method={"type": "dpo", "dpo": {"hyperparameters": terms}},
    )
    job = succeeded(pia, job)
    assert job.method is not None
    assert job.method.type == "dpo"
    model = gateway.client("pia").model(str(job.fine_tuned_model))
    assert model.privacy is not None
    assert "DPO" in str(model.privacy.objective)
    assert model.certificate().predicate.guarantee.epsilon <= 3


def test_chats(gateway: demo.DemoGateway, chat_base: Path, tmp_path: Path) -> None:
    """Chats are uploaded, fitted, and asked of a model whose base has a template, to the end; so
    are preferences between two of its answers."""
    admin = gateway.client("admin").admin
    admin.change_user("olivia", sources=[str(tmp_path / "store")])
    (tmp_path / "store").mkdir()
    known = facts(str(chat_base))
    sizes = known.model_dump(include={"parameters", "context_length", "vocabulary"})
    admin.add_base_model(CHAT_BASE, **sizes)
    olivia, pia = (
        openai.OpenAI(base_url=f"{gateway.url}/openai/v1", api_key=gateway.token(name))
        for name in ("olivia", "pia")
    )
    question = {"role": "user", "content": f"{SECRET} asks where it is."}
    answer = {"role": "assistant", "content": "It is on its way."}
    other = {"role": "assistant", "content": "No idea."}
    chats = {"messages": [question, answer]}
    pairs = {
        "input": {"messages": [question]},
        "preferred_output": [answer],
        "non_preferred_output": [other],
    }
    terms: dict[str, Any] = {"steps": 2, "batch_size": 10, "target_epsilon": 2, "max_tokens": 48}
    for kind, record in (("supervised", chats), ("dpo", pairs)):
        lines = "\n".join(json.dumps({"customer": f"c{n // 2}", **record}) for n in range(60))
        file = olivia.files.create(
            file=("chats.jsonl", lines.encode()),
            purpose="fine-tune",
            extra_body={
                "namespace": f"chats_{kind}",
                "privacy_unit": "customer",
                "units": 30,
                "epsilon": 8,
                "delta": 1e-5,
            },
        )
        gateway.client("olivia").grant(f"chats_{kind}", "user:pia", epsilon=8, delta=1e-5)
        pia.files.wait_for_processing(file.id, poll_interval=0.5, max_wait_seconds=120)
        job = pia.fine_tuning.jobs.create(
            model=CHAT_BASE,
            training_file=file.id,
            method={"type": kind, kind: {"hyperparameters": terms}},
        )
        job = succeeded(pia, job)
        told = pia.chat.completions.create(
            model=str(job.fine_tuned_model),
            messages=[{"role": "user", "content": "Where is it?"}],
            max_tokens=4,
        )
        assert told.choices[0].message.role == "assistant"
        assert told.usage is not None
        assert told.usage.completion_tokens > 0


def test_code_of_other_pages(
    gateway: demo.DemoGateway, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python on practitioner.md and administrator.md."""
    rows = [{"id": f"{n}_1", "context": "A parcel is late."} for n in range(40)]
    (work / "phee.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    gateway.client("admin").admin.change_user("olivia", sources=[f"{work}/"])
    gateway.client("olivia").add_dataset(
        "phee",
        str(work / "phee.jsonl"),
        unit="split_part(id,'_',1)",
        namespace="patients-2026",
        units=40,
        columns=["id", "context"],
        epsilon=8,
        delta=1e-5,
    )
    gateway.client("olivia").grant("patients-2026", "user:pia", epsilon=8, delta=1e-5)
    pia = openai.OpenAI(base_url=f"{gateway.url}/openai/v1", api_key=gateway.token("pia"))
    pia.files.wait_for_processing("phee", poll_interval=0.5, max_wait_seconds=120)
    monkeypatch.setenv("TACITURN_URL", gateway.url)
    monkeypatch.setenv("TACITURN_TOKEN", gateway.token("admin"))
    (administrator,) = page_code("administrator.md")
    exec(administrator, {"taciturn": taciturn})  # noqa: S102
    assert "HuggingFaceTB/SmolLM2-135M" in {
        base.name for base in gateway.client("admin").base_models()
    }

    monkeypatch.setenv("TACITURN_TOKEN", gateway.token("pia"))
    look, fit, ask = page_code("practitioner.md")
    names: dict[str, Any] = {"token": gateway.token("pia")}
    small = "steps=1, batch_size=8, max_tokens=32, method='lora'"
    exec(look, names)  # noqa: S102
    exec(fit.replace("target_epsilon=3,", f"target_epsilon=3, {small},"), names)  # noqa: S102
    model = names["job"].result().id
    ask = ask.replace("https://gateway.example", gateway.url).replace("mod_0000", model)
    exec(ask.replace("messages=", "max_tokens=4, messages="), names)  # noqa: S102


def page_code(name: str) -> list[str]:
    """Python of a page, that in tabs included."""
    text = (PAGE.parent / name).read_text("utf-8")
    return [block.code for block in code_blocks.blocks(text) if block.language == "python"]


def test_npms_client(gateway: demo.DemoGateway, work: Path) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("OpenAI's npm client needs node and npm, which are not here")
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "openai"],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=200,
    )
    if done.returncode:
        pytest.skip("npm could not get OpenAI's client: there is no registry here")
    pages = [work / "upload.mjs", work / "fit.mjs"]
    for page, code in zip(pages, blocks("javascript"), strict=True):
        page.write_text(code, encoding="utf-8")
    story(gateway, work, ["node"], pages)
