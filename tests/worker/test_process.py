"""The worker as a process: what it is told, where it prints, and what it leaves of its secrets."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from support.program import run_python
from taciturn.errors import OutputError, SpecError
from taciturn.wire.exits import WorkerExit
from taciturn.wire.jobs import JobKind, RemoteProbe
from taciturn.worker.job import _module
from taciturn.worker.settings import WorkerSettings
from taciturn.worker.workspace import Workspace, canary_folders
from worker.jobs import assignment, notes, source, write

TOLD = {
    "TACITURN_GATEWAY_URL": "http://127.0.0.1:9",
    "TACITURN_JOB": "job_1",
    "TACITURN_JOB_TOKEN": "s3cret",
    "TACITURN_WORKSPACE": "/nowhere",
}


@pytest.mark.parametrize("name", TOLD)
def test_what_is_missing_is_named(name: str) -> None:
    with pytest.raises(SpecError, match=name) as caught:
        WorkerSettings.of({key: value for key, value in TOLD.items() if key != name})
    assert "s3cret" not in str(caught.value)


def test_the_token_is_shown_nowhere() -> None:
    assert "s3cret" not in repr(WorkerSettings.of(TOLD))


def test_a_worker_without_its_settings_says_so() -> None:
    environment = {key: value for key, value in os.environ.items() if key not in TOLD}
    done = run_python("-m", "taciturn.worker", environment=environment)
    assert done.returncode == WorkerExit.BAD_CONFIGURATION
    assert "TACITURN_GATEWAY_URL" in done.stderr


KEY = "ab" * 32


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"TACITURN_CHECKPOINT_URL": "s3://bucket/x"}, "TACITURN_CHECKPOINT_KEY is not"),
        ({"TACITURN_CHECKPOINT_KEY": KEY}, "TACITURN_CHECKPOINT_URL is not"),
        ({"TACITURN_CHECKPOINT_URL": "/x", "TACITURN_CHECKPOINT_KEY": KEY[1:]}, "63 characters"),
        ({"TACITURN_CHECKPOINT_URL": "/x", "TACITURN_CHECKPOINT_KEY": "xy" * 32}, "hexadecimal"),
        ({"TACITURN_PEER_LIMIT_S": "soon"}, "TACITURN_PEER_LIMIT_S='soon'"),
        ({"TACITURN_PEER_LIMIT_S": "0"}, "from 1 to 86400"),
    ],
    ids=str,
)
def test_half_a_configuration_is_refused(told: dict[str, str], named: str) -> None:
    with pytest.raises(SpecError, match=named) as caught:
        WorkerSettings.of({**TOLD, **told})
    assert KEY[1:] not in str(caught.value)


def test_a_key_and_its_store() -> None:
    told = {"TACITURN_CHECKPOINT_URL": "s3://bucket/x", "TACITURN_CHECKPOINT_KEY": KEY}
    settings = WorkerSettings.of({**TOLD, **told})
    assert settings.checkpoint_key == bytes.fromhex(KEY)
    assert repr(settings.checkpoint_key) not in repr(settings)
    assert KEY not in repr(settings)


@pytest.mark.parametrize(
    "told",
    [
        {"TACITURN_CHECKPOINT_URL": "s3://bucket/x"},
        {"TACITURN_CHECKPOINT_URL": "nonsense://x", "TACITURN_CHECKPOINT_KEY": KEY},
    ],
    ids=["no key", "no protocol"],
)
def test_a_store_that_cannot_be_used_ends_the_worker_before_it_takes_the_job(
    told: dict[str, str], tmp_path: Path
) -> None:
    """No gateway answers at this address, and none is asked."""
    variables = {**TOLD, "TACITURN_WORKSPACE": str(tmp_path), **told}
    done = run_python("-m", "taciturn.worker", **variables)
    assert done.returncode == WorkerExit.BAD_CONFIGURATION
    assert "TACITURN_CHECKPOINT" in done.stderr
    assert KEY not in done.stderr


@pytest.mark.parametrize("job", ["", ".", "..", "../other", "a/b", "x" * 200])
def test_a_jobs_id_names_one_folder(job: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        Workspace.of(tmp_path, job)


def test_a_workspace_is_its_users_own(tmp_path: Path) -> None:
    folder = Workspace.of(tmp_path / "root", "job_1").folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_a_workspace_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Workspace.of(tmp_path / "file", "job_1")


def test_a_release_that_was_begun_is_begun_again(tmp_path: Path) -> None:
    space = Workspace.of(tmp_path, "job_1")
    checkpoint = space.output / "private" / "checkpoints" / "step-00000003"
    checkpoint.mkdir(parents=True)
    (space.output / "privacy_report.json").write_text("half")
    assert space.resumable()
    assert sorted(path.name for path in space.output.iterdir()) == ["private"]


def test_a_run_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    space = Workspace.of(tmp_path, "job_1")
    (space.output / "private" / "data").mkdir(parents=True)
    assert not space.resumable()
    assert not space.output.exists()


def test_canaries_are_found_by_what_commits_to_them(tmp_path: Path) -> None:
    texts = (b"one", b"other")
    for number, text in enumerate(texts):
        home = tmp_path / f"root-{number}" / "job_fit" / "output" / "private" / "data"
        home.mkdir(parents=True)
        (home / "canaries.json").write_bytes(text)
    wanted = hashlib.sha256(b"other").hexdigest()
    for root in (tmp_path / "root-0", tmp_path / "root-1"):
        (found,) = canary_folders(root, wanted)
        assert (found / "canaries.json").read_bytes() == b"other"


def test_a_worker_that_looks_at_a_dataset_loads_no_model(tmp_path: Path) -> None:
    """torch and what comes with it take several times as long as the look itself."""
    job = assignment(
        RemoteProbe(dataset="notes"), source=source(write(notes(), tmp_path / "notes.jsonl"))
    )
    (tmp_path / "job.json").write_text(job.model_dump_json())
    script = (
        "import sys\nfrom pathlib import Path\nfrom worker.worker_process import main\n"
        "main(Path(sys.argv[1]))\n"
        "print(*{'torch', 'transformers', 'peft', 'scipy', 'dp_accounting'} & set(sys.modules))"
    )
    tests = str(Path(__file__).resolve().parents[1])
    done = run_python("-c", script, tmp_path, PYTHONPATH=tests)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
    assert json.loads((tmp_path / "end.json").read_text())["succeeded"]
    assert (tmp_path / "files" / "schema.json").is_file()


@pytest.mark.parametrize("kind", JobKind)
def test_every_kind_of_job_has_a_module_of_its_name(kind: JobKind) -> None:
    assert callable(_module(kind).run)
