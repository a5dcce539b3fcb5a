"""The commands of every recipe in examples/ run as they stand, on a tiny model of its kind."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import shlex
import shutil
import sys
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.code_blocks import blocks
from support.ranks import in_processes, results
from taciturn.cli.main import main
from taciturn.planning.defaults import PublicFacts
from taciturn.planning.plan import make_plan
from taciturn.reports.privacy import REPORT
from taciturn.server.launchers.base import Order, WorkerState
from taciturn.server.launchers.kubernetes.launcher import KubernetesLauncher
from taciturn.server.launchers.kubernetes.settings import Pool
from taciturn.server.launchers.kubernetes.sizing import Need, choose, fit_need
from taciturn.spec import PerformanceSpec
from taciturn.wire.jobs import DataRef, RemoteFit
from taciturn.wire.worker import BaseModelFacts

_LENGTH = ("epochs", "max_minutes", "steps", "batch_size")

LOCAL = {
    "hospital-notes": "embedded",
    "support-tickets": "embedded",
    "legal-clauses": "chat",
    "two-gpus": "llama",
    "coming-from-openai": "chat",
    "coming-from-trl": "llama",
}
"""Recipe -> kind of the tiny model that stands for its base."""

UNITS = {
    **dict.fromkeys(("hospital-notes", "two-gpus", "coming-from-trl"), "patient_id"),
    "support-tickets": "customer",
    "legal-clauses": "client",
    "coming-from-openai": "one record",
}

_TURNS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def models(
    tiny_llama: Path, tiny_medical: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """Kind -> name or folder of a model."""
    from transformers import AutoModelForCausalLM as Model
    from transformers import AutoTokenizer, MistralConfig, Qwen2Config

    small: dict[str, Any] = {"vocab_size": 6144, "hidden_size": 16, "intermediate_size": 24}
    small |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    small |= {"max_position_embeddings": 160, "bos_token_id": 1, "eos_token_id": 2}
    configs = {"chat": Qwen2Config, "mistral": MistralConfig}

    def make(kind: str) -> str:
        if kind not in configs:
            return {"embedded": "taciturn/tiny-medical", "llama": str(tiny_llama)}[kind]
        folder = tmp_path_factory.mktemp(kind)
        Model.from_config(configs[kind](**small, pad_token_id=0)).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(tiny_medical)
        tokenizer.chat_template = _TURNS
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


def commands(folder: Path) -> list[str]:
    """Lines of the README that a shell would run."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    shell = [block.code for block in blocks(text) if block.language == "sh"]
    return [line for code in shell for line in code.splitlines() if line]


def program(*arguments: str) -> str:
    """`taciturn ...` in this process; what it printed."""
    sys.argv = ["taciturn", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code, arguments
    return out.getvalue()


def run(line: str, model: str) -> None:
    """Run a line: torchrun's processes are forked, and no command needs a process of its own."""
    first, *rest = shlex.split(line)
    if first == "torchrun":
        number, _, package, *rest = rest[1:]
        assert package == "taciturn"
        results(in_processes(int(number), program, *rest))
    elif first == "python":
        sys.argv = [rest[0], model, "2"]
        runpy.run_path(rest[0], run_name="__main__")
    else:
        assert first == "taciturn"
        program(*rest)


@pytest.mark.thorough
@pytest.mark.parametrize("name", LOCAL)
def test_a_recipe_runs(
    name: str,
    models: Callable[[str], str],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / name
    shutil.copytree(root / "examples" / name, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", sys.argv)
    model, job = models(LOCAL[name]), folder / "job.yaml"
    if job.exists():
        fields = yaml.safe_load(job.read_text(encoding="utf-8"))
        fields = {key: value for key, value in fields.items() if key not in _LENGTH}
        short = {"model": model, "steps": 2, "batch_size": 6, "max_tokens": 48, "device": "cpu"}
        short |= {"method": "lora", "r": 2}
        job.write_text(yaml.safe_dump(fields | short), encoding="utf-8")
    for line in commands(folder):
        run(line, model)
    report = json.loads((folder / "out" / REPORT).read_text(encoding="utf-8"))
    assert 0 < report["epsilon"] <= 8
    assert report["privacy_unit"] == UNITS[name]


@pytest.mark.thorough
def test_a_base_of_seven_billion_on_a_cluster(
    models: Callable[[str], str], root: Path, tmp_path: Path
) -> None:
    """The machine is chosen for 7 billion parameters; a tiny model of its kind is fitted on it."""
    pytest.importorskip("kubernetes")
    from fake_kubernetes.autoscaler import Group
    from fake_kubernetes.cluster import FakeCluster
    from support.kubernetes_namespace import with_namespace
    from worker.bridge import handler
    from worker.fake_gateway import TOKEN, FakeGateway
    from worker.jobs import facts, fit_job, notes, source, write

    recipe = root / "examples" / "kubernetes-7b"
    fields = yaml.safe_load((recipe / "job.yaml").read_text(encoding="utf-8"))
    pools = tuple(Pool(**pool) for pool in json.loads((recipe / "pools.json").read_text()))
    assert fields.pop("data") == "gateway:notes"
    fields["data"] = DataRef(dataset="notes")
    del fields["output"]  # where the command downloads the model to
    asked = RemoteFit(**fields)
    seven = BaseModelFacts(
        name=asked.model, parameters=7_241_732_096, context_length=32_768, vocabulary=32_000
    )
    public = PublicFacts(1200, seven.name, seven.parameters, seven.context_length)
    plan = make_plan(asked.fit_spec().model_copy(update={"delta": 1e-6}), public)
    machine = choose(pools, fit_need(plan, seven, asked.part(PerformanceSpec)), asked.machine)
    assert machine.pool.name == "l4"

    tiny = facts(models("mistral"))
    small = {"model": tiny.name, "steps": 2, "batch_size": 8, "r": 2, "max_tokens": 32}
    small |= {"quantization": None, "dtype": "float32", "microbatch_tokens": 256}
    gateway = FakeGateway(
        fit_job(RemoteFit(**fields | small), tiny, source(write(notes(), tmp_path / "n.jsonl")))
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(gateway))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    job = gateway.assignment.job
    told = {"TACITURN_GATEWAY_URL": address, "TACITURN_JOB": job, "TACITURN_JOB_TOKEN": TOKEN}
    with FakeCluster(speed=20, host={"PYTHONPATH": str(root / "src")}) as fake:
        fake.add_group(Group("l4", labels=dict(machine.pool.node_selector)))
        with contextlib.contextmanager(with_namespace)(fake.kubeconfig, fake) as world:
            command = ("python", "-m", "taciturn.worker")
            settings = world.settings(command=command, pools=pools, deadline_s=86_400)
            launcher = KubernetesLauncher(world.cluster, settings, lambda job_id: Need(machine))
            order = Order(job, 1, told)
            launcher.launch(order)
            over = (WorkerState.ENDED, WorkerState.ABSENT)
            world.until(lambda: launcher.status(order.handle) in over, patience_s=800)
            (pod,) = world.pods(**{"taciturn.dev/job": job})
            assert pod.spec.node_name.startswith("l4")
    server.shutdown()
    server.server_close()
    assert gateway.outcome.succeeded
    assert gateway.charged_steps == 2


def test_every_recipe_is_run_and_listed(root: Path) -> None:
    folders = {path.parent.name for path in (root / "examples").glob("*/README.md")}
    elsewhere = {"kubernetes-7b"}  # below
    assert folders >= LOCAL.keys() | elsewhere
    listed = (root / "examples" / "README.md").read_text(encoding="utf-8")
    page = (root / "docs" / "how-to" / "recipes.md").read_text(encoding="utf-8")
    for name in LOCAL.keys() | elsewhere:
        assert f"]({name}/README.md)" in listed
        assert f"examples/{name}" in page
