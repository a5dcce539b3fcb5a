"""The import contracts of pyproject.toml hold, and each of them breaks when it should."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from support.program import run_python

LINT = "import sys; from importlinter.cli import lint_imports_command as main; sys.exit(main())"


def lint(root: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run lint-imports on the tree at `root`, whatever else is installed."""
    variables = {"PYTHONPATH": str(root / "src"), "COLUMNS": "200"}
    return run_python("-c", LINT, "--no-logo", "--cache-dir", cache, cwd=root, **variables)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("import_linter_cache")


@pytest.fixture
def tree(root: Path, tmp_path: Path) -> Path:
    """A copy of the sources in which violations can be planted."""
    python_only = shutil.ignore_patterns("__pycache__", "tiny_medical")
    shutil.copytree(root / "src", tmp_path / "src", ignore=python_only)
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def test_contracts_hold(root: Path, cache: Path) -> None:
    result = lint(root, cache)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_no_folder_hides_from_the_contracts(root: Path) -> None:
    """A folder without __init__.py is no package to import-linter: nothing in it is checked."""
    package = root / "src" / "taciturn"
    folders = {path.parent for path in package.rglob("*.py")}
    assert {folder.name for folder in folders if not (folder / "__init__.py").is_file()} == set()


VIOLATIONS = {
    # name: (module, planted line, contract that must break)
    "transformers in the kernel": (
        "engine/privacy/clipping.py",
        "import transformers",
        "kernel-small",
    ),
    "pydantic in the kernel, through a spec": (
        "engine/privacy/sampling.py",
        "import taciturn.spec",
        "kernel-small",
    ),
    "typer in the engine": ("data/source.py", "import typer", "engine-library"),
    "rich in the engine": ("engine/training/loop.py", "import rich", "engine-library"),
    "torch in the spec": ("spec.py", "import torch", "torch-free"),
    "torch in the report, inside a function": (
        "reports/privacy.py",
        "def _lazy() -> None:\n    import torch",
        "torch-free",
    ),
    "peft in the accountant": ("accounting/events.py", "from peft import LoraConfig", "torch-free"),
    "torch in the certificate, inside a function": (
        "certificate/verify.py",
        "def _lazy() -> None:\n    import torch",
        "torch-free",
    ),
    "our own accountant checks a certificate": (
        "certificate/recompute.py",
        "import taciturn.accounting.compose",
        "certificate-independent",
    ),
    "the accountant imports the certificate": (
        "accounting/events.py",
        "import taciturn.certificate.sign",
        "rooms",
    ),
    "torch in a page, inside a function": (
        "reports/html/report.py",
        "def _lazy() -> None:\n    import torch",
        "torch-free",
    ),
    "a page imports the certificate": (
        "reports/html/report.py",
        "import taciturn.certificate.sign",
        "rooms",
    ),
    "a page imports the demo": ("reports/html/bars.py", "import taciturn.demo.result", "rooms"),
    "the certificate imports the engine": (
        "certificate/files.py",
        "import taciturn.engine.model.files",
        "rooms",
    ),
    "sampling imports the mechanism": (
        "engine/privacy/sampling.py",
        "import taciturn.engine.privacy.mechanism",
        "kernel",
    ),
    "noise imports clipping": (
        "engine/privacy/noise.py",
        "import taciturn.engine.privacy.clipping",
        "kernel",
    ),
    "types imports clipping": (
        "engine/privacy/types.py",
        "import taciturn.engine.privacy.clipping",
        "kernel",
    ),
    "data imports training": (
        "data/source.py",
        "import taciturn.engine.training.loop",
        "rooms",
    ),
    "data imports model": ("data/source.py", "import taciturn.engine.model.load", "rooms"),
    "rows import tokens": ("data/rows.py", "import taciturn.data.tokens.store", "data"),
    "the server imports the engine": (
        "server/ledger/rules.py",
        "import taciturn.engine.training.loop",
        "rooms",
    ),
    "a worker imports the server": (
        "worker/job.py",
        "import taciturn.server.database",
        "worker-alone",
    ),
    "the door imports a kind of job": (
        "worker/egress.py",
        "import taciturn.worker.jobs.probe",
        "worker-rooms",
    ),
    "the engine imports the server": (
        "engine/training/loop.py",
        "import taciturn.server.database",
        "rooms",
    ),
    "the certificate imports the server": (
        "certificate/files.py",
        "import taciturn.server.ledger.seal",
        "rooms",
    ),
    "torch in the server, inside a function": (
        "server/ledger/journal.py",
        "def _lazy() -> None:\n    import torch",
        "torch-free",
    ),
    "transformers in the server": ("server/database.py", "import transformers", "torch-free"),
    "the database imports the ledger": (
        "server/database.py",
        "import taciturn.server.ledger.tables",
        "server",
    ),
    "rules read rows": (
        "server/ledger/rules.py",
        "import taciturn.server.ledger.store",
        "ledger",
    ),
    "entries know budgets": (
        "server/ledger/entry.py",
        "import taciturn.server.ledger.state",
        "ledger",
    ),
    "verification uses what wrote the rows": (
        "server/ledger/verification.py",
        "import taciturn.server.ledger.ledger",
        "ledger",
    ),
    "the ledger calls somebody": (
        "server/ledger/journal.py",
        "import httpx",
        "ledger-computes",
    ),
    "the ledger signs with a command": (
        "server/ledger/seal.py",
        "import taciturn.certificate.signers",
        "ledger-computes",
    ),
    "the ledger serves": ("server/ledger/ledger.py", "import fastapi", "ledger-computes"),
    "evaluation imports auditing": (
        "engine/evaluation/quality.py",
        "import taciturn.engine.auditing.roc",
        "engine",
    ),
    "what reads tokens knows how they were made": (
        "data/tokens/store.py",
        "import taciturn.data.tokens.tokenize",
        "tokens",
    ),
    "a batch reads rows": ("engine/training/batch.py", "import taciturn.data.source", "batches"),
    "a job reads its result": ("sdk/job.py", "import taciturn.sdk.results", "sdk"),
    "data are declared by jobs": ("spec/data.py", "import taciturn.spec.jobs", "spec"),
    "fits import models": ("local/fit.py", "import taciturn.local.model", "local"),
    "engine imports llm": ("engine/training/loop.py", "import taciturn.llm", "rooms"),
    "a fit imports the command line": ("local/fit.py", "import taciturn.cli.main", "rooms"),
    "errors import spec": ("errors.py", "import taciturn.spec", "rooms"),
    "a room nobody listed": ("cupboard.py", "", "rooms"),
    "an unlisted room of the engine": ("engine/cupboard.py", "", "engine"),
    "an unlisted module of the kernel": ("engine/privacy/cupboard.py", "", "kernel"),
    "an unlisted room of the server": ("server/cupboard.py", "", "server"),
    "an unlisted module of the ledger": ("server/ledger/cupboard.py", "", "ledger"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_planted_violation_is_caught(name: str, tree: Path, cache: Path) -> None:
    path, line, contract = VIOLATIONS[name]
    planted = tree / "src" / "taciturn" / path
    with planted.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    result = lint(tree, cache)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{contract_name(tree, contract)} BROKEN" in result.stdout


def contract_name(root: Path, contract: str) -> str:
    """The name of a contract in pyproject.toml, by its id."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    return next(str(each["name"]) for each in contracts if each["id"] == contract)


HEAVY = ("torch", "transformers", "peft", "datasets", "pandas", "pyarrow", "duckdb")

# A command that ends, well or not; only the probe says how it came to that.
TYPED = """
import contextlib, io, sys
from taciturn.cli.main import main
sys.argv = ["taciturn", *{}]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main()
"""

PROBE = f"""
import sys
{{action}}
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"loaded: {{{{loaded}}}}" if loaded else 0)
"""


@pytest.mark.parametrize(
    "action",
    [
        "import taciturn",
        "import taciturn; taciturn.PrivacyReport; taciturn.SpecError; dir(taciturn)",
        "import taciturn.spec, taciturn.accounting, taciturn.reports.html.report",
        "import taciturn.server.schema.versions, taciturn.server.ledger",
        "import taciturn.cli.main",
        TYPED.format(["--help"]),
        TYPED.format(["fit", "--model", "m", "--data", "d", "--target-epsilon", "0"]),
        TYPED.format(["plan", "--model", "m", "--target-epsilon", "3"]),
        TYPED.format(["sample", "--max-new-tokens", "0"]),
    ],
    ids=[
        *("import", "light names", "light rooms", "server", "cli", "help"),
        *("fit mistyped", "plan mistyped", "sample mistyped"),
    ],
)
def test_loads_no_torch(action: str, root: Path) -> None:
    result = run_python("-c", PROBE.format(action=action), PYTHONPATH=str(root / "src"))
    assert result.returncode == 0, result.stderr


def test_help_loads_nothing_that_one_command_alone_needs(root: Path) -> None:
    """A fifth of the time of `taciturn --help` went into these."""
    script = TYPED.format(["--help"]) + (
        "\nimport sys\n"
        "needless = {'yaml', 'importlib.metadata', 'taciturn.cli.translation.rules', 'pandas'}\n"
        "print(needless & set(sys.modules) or '', file=sys.stderr)"
    )
    result = run_python("-c", script, PYTHONPATH=str(root / "src"))
    assert result.stderr.strip() == ""


def test_a_gateway_has_neither_database_engine_nor_models_in_its_process(root: Path) -> None:
    """A practitioner's SQL is run elsewhere, and so is everything that reads rows."""
    script = (
        "import sys, taciturn.server.serve\n"
        "sys.exit(str({'duckdb', 'torch', 'transformers', 'peft'} & set(sys.modules) or ''))"
    )
    result = run_python("-c", script, PYTHONPATH=str(root / "src"))
    assert result.stderr.strip() == ""


def test_help_command_names_every_command(root: Path) -> None:
    program = "from taciturn.cli.main import main; main()"
    result = run_python("-c", program, "--help", PYTHONPATH=str(root / "src"), COLUMNS="100")
    assert result.returncode == 0, result.stderr
    for command in ("fit", "sample", "plan", "ledger", "demo", "doctor"):
        assert command in result.stdout
