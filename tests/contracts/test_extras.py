"""Each extra brings what its code imports: by reading the code, and by installing the wheel."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.program import run_python

_CLIENT = (
    *("audit", "dataset", "demo", "downstream", "evaluate", "export", "extract", "fit"),
    *("gateway", "jobs"),
    *("ledger", "main", "membership", "model", "options", "people", "plan", "sample"),
    *("session", "synthesize", "terms", "translation"),
)
_SQL = (
    *("data.sql", "data.filesystem", "data.places", "data.suffixes", "data.unit"),
    *("data.arrow_types", "data.rows", "data.schema_fields"),
)
_HERE = ("doctor", "progress")
ROOMS: dict[str, tuple[str, ...]] = {
    "verify": ("certificate", "accounting", "planning", "cli.certificate"),
    "core": (
        *("__init__", "__main__", "collector", "errors", "llm", "sdk", "wire", "notebook"),
        *("embedded", "spec"),
        *(f"reports.{name}" for name in ("card", "figures", "privacy", "verdict")),
        *(f"cli.{name}" for name in _CLIENT),
    ),
    "server": ("server", "malloc", *_SQL, "cli.serve"),
    "kubernetes": ("server.launchers.kubernetes", "cli.doctor_kubernetes", "data.filesystem"),
    "engine": (
        *("data", "engine", "hf", "local", "worker", "demo", "reports"),
        *(f"cli.{name}" for name in _HERE),
    ),
}
"""Extra -> what its commands start. All that these import has to be there, at once or later, unless
they say what is missing (`except ImportError`); and what the modules import at once that these
import at once."""

BESIDE = {"kubernetes": ("server",)}
"""Extras that one is installed beside."""

FOUND_THERE = {
    "IPython": "in a notebook, where it is running already",
    "gguf": "asked for first, with `find_spec`; the extra of that name brings it",
    "torchao": "asked for first, with `find_spec`",
    "tensorboard": "named in report_to: whoever has not got it is told so first",
    "mlflow": "named in report_to: whoever has not got it is told so first",
    "wandb": "named in report_to: whoever has not got it is told so first",
}
"""Modules that no extra brings, and when they are imported."""

DISTRIBUTIONS = {"yaml": "pyyaml", "argon2": "argon2-cffi"}
"""Module -> who brings it, where the name is another."""


@dataclass(frozen=True)
class Import:
    """A module that is imported; where; whether at once, and whether it may be missing."""

    name: str
    where: str
    at_once: bool
    guarded: bool


def module_name(path: Path, source: Path) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(("taciturn", *(part for part in parts if part != "__init__")))


class _Imports(ast.NodeVisitor):
    def __init__(self, module: str) -> None:
        self.module, self.found = module, list[Import]()
        self.depth = self.guards = 0

    def add(self, name: str) -> None:
        self.found.append(Import(name, self.module, self.depth == 0, self.guards > 0))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, self.module
        for alias in node.names:  # a name or a module: whichever is there
            self.add(f"{node.module}.{alias.name}")

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_Try(self, node: ast.Try) -> None:
        kinds = " ".join(ast.unparse(each.type) for each in node.handlers if each.type)
        guard = int("ImportError" in kinds or "ModuleNotFoundError" in kinds)
        self.guards += guard
        for each in node.body:
            self.visit(each)
        self.guards -= guard
        for each in (*node.handlers, *node.orelse, *node.finalbody):
            self.visit(each)


def imports(source: Path) -> dict[str, list[Import]]:
    """Module -> what it imports; types apart."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        visitor = _Imports(module_name(path, source))
        visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
        found[visitor.module] = visitor.found
    return found


def needed(extra: str, found: dict[str, list[Import]]) -> dict[str, set[str]]:
    """Top-level name of a third-party module -> which modules of the extra import it."""
    rooms = [f"taciturn.{room}" if room != "__init__" else "taciturn" for room in ROOMS[extra]]
    queue = [
        name
        for name in found
        if any(
            name == room or (room != "taciturn" and name.startswith(f"{room}.")) for room in rooms
        )
        and (extra == "kubernetes" or not name.startswith("taciturn.server.launchers.kubernetes"))
    ]
    own, seen, outside = set(queue), set(queue), dict[str, set[str]]()
    while queue:
        module = queue.pop()
        for each in found[module]:
            top = each.name.partition(".")[0]
            if top == "taciturn":
                if each.at_once and not each.guarded:
                    for reached in _reached(each.name, found):
                        if reached not in seen:
                            seen.add(reached)
                            queue.append(reached)
            elif each.guarded or top in sys.stdlib_module_names:
                continue
            elif each.at_once or module in own:
                outside.setdefault(top, set()).add(module)
    return outside


def _reached(name: str, found: dict[str, list[Import]]) -> Iterator[str]:
    """The module, and the packages that it is in; of a name, the module that has it."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        module = ".".join(parts[:length])
        if module in found:
            yield module


def declared(extra: str, root: Path) -> list[Requirement]:
    """What pyproject.toml says of the core, of an extra, and of those beside it."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for each in (*BESIDE.get(extra, ()), extra):
        if each != "core":
            lines += project["optional-dependencies"][each]
    return [Requirement(line) for line in lines]


def brought(requirements: list[Requirement]) -> set[str]:
    """The names of all packages that these lead to, as installed here."""
    names, queue = set[tuple[str, str]](), list(requirements)
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in names:
                continue
            names.add((name, extra))
            try:
                lines = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue  # not for this system
            needs = [Requirement(line) for line in lines]
            queue += [
                each
                for each in needs
                if each.marker is None or each.marker.evaluate({"extra": extra})
            ]
    return {name for name, _ in names}


def lacking(
    extra: str, found: dict[str, list[Import]], requirements: list[Requirement]
) -> list[str]:
    """Which modules an extra imports and does not bring."""
    there = brought(requirements)
    return [
        f"{module}, imported by {sorted(who)[0]}"
        for module, who in sorted(needed(extra, found).items())
        if module not in FOUND_THERE
        and canonicalize_name(DISTRIBUTIONS.get(module, module)) not in there
    ]


@pytest.mark.parametrize("extra", ROOMS)
def test_an_extra_brings_what_its_code_imports(extra: str, root: Path) -> None:
    found = imports(root / "src" / "taciturn")
    assert lacking(extra, found, declared(extra, root)) == []


def test_every_module_belongs_to_an_extra(root: Path) -> None:
    names = set(imports(root / "src" / "taciturn"))
    rooms = [f"taciturn.{room}" for each in ROOMS.values() for room in each]
    left = {
        name
        for name in names - {"taciturn", "taciturn.cli", "taciturn._version"}
        if not any(name == room or name.startswith(f"{room}.") for room in rooms)
    }
    assert left == set()


@pytest.mark.parametrize(
    ("extra", "package", "module"),
    [
        ("server", "jinja2", "jinja2"),
        ("server", "h11", "h11"),
        ("engine", "torch", "torch"),
        ("core", "pyyaml", "yaml"),
    ],
)
def test_a_package_that_is_left_out_is_found(
    extra: str, package: str, module: str, root: Path
) -> None:
    """Those that no other package of the extra brings are missed; the rest is declared anyway."""
    found = imports(root / "src" / "taciturn")
    kept = [each for each in declared(extra, root) if each.name != package]
    if canonicalize_name(package) in brought(kept):
        kept = []
    assert any(line.startswith(f"{module}, ") for line in lacking(extra, found, kept))


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is uploaded."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, str(root)], check=True)
    (found,) = folder.glob("taciturn-*.whl")
    return found


@dataclass(frozen=True)
class Seconds:
    """Medians: by the clock, and of the processor, which a loaded machine hardly changes."""

    clock: float
    processor: float

    def __str__(self) -> str:
        return f"{self.clock:.2f} s ({self.processor:.2f} s of processor)"


@dataclass(frozen=True)
class Fresh:
    """An environment in which nothing is but the wheel with an extra."""

    folder: Path

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command of the environment, outside of the sources; what it said."""
        result = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        said = result.stdout + result.stderr
        assert result.returncode == code, said
        assert "Traceback" not in said
        return said

    def sizes(self) -> tuple[int, int]:
        """Bytes of what was installed, and of the bytecode that Python made of it."""
        (packages,) = (self.folder / "lib").glob("python3*/site-packages")
        files = [path for path in packages.rglob("*") if path.is_file()]
        bytecode = sum(path.stat().st_size for path in files if path.suffix == ".pyc")
        return sum(path.stat().st_size for path in files) - bytecode, bytecode

    def seconds(self, *command: str) -> Seconds:
        """Run a command several times, when its bytecode is there."""
        self.run(*command)
        walls, processor = [], []
        for _ in range(5):
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            self.run(*command)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            walls.append(time.perf_counter() - start)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            processor.append(spent)
        return Seconds(statistics.median(walls), statistics.median(processor))

    def environment(self) -> dict[str, str]:
        """Without what would lead to other packages."""
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return {**own, "HOME": str(self.folder), "COLUMNS": "200"}


def fresh(wheel: Path, extras: str, root: Path, folder: Path) -> Fresh:
    """Install it, as the documents say."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    what = f"{wheel}[{extras}]" if extras else str(wheel)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    options = ["--quiet", "--no-compile", "-c", str(root / "constraints.txt")]
    subprocess.run([*pip, *options, what], check=True)
    return Fresh(folder)


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_the_client_as_it_is_installed(wheel: Path, root: Path, tmp_path: Path) -> None:
    here = fresh(wheel, "", root, tmp_path / "venv")
    assert "whoami" in here.run("taciturn", "--help")
    here.run("python", "-c", "import taciturn; taciturn.Client('http://127.0.0.1:1', 'token')")
    asked = ("sample", "taciturn/tiny-medical", "--prompt", "A")
    assert "taciturn[engine]" in here.run("taciturn", *asked, code=1)
    assert "taciturn[engine]" in here.run("taciturn", "demo", code=1)
    assert "taciturn[server]" in here.run("taciturn", "serve", code=1)
    assert "taciturn[verify]" in here.run("taciturn", "cert", "verify", "out", code=1)
    size, bytecode = here.sizes()
    started, importing, helping = (
        here.seconds(*command)
        for command in (
            ("python", "-c", "pass"),
            ("python", "-c", "import taciturn"),
            ("taciturn", "--help"),
        )
    )
    print(
        f"\nthe client takes {size / 1e6:.0f} MB, and {bytecode / 1e6:.0f} MB of bytecode so far; "
        f"python alone {started}, import taciturn {importing}, taciturn --help {helping}"
    )
    assert size < 150e6
    assert importing.processor < 0.3
    assert helping.processor < 2  # a quarter of that on an idle machine, see the line above


def test_what_a_start_imports() -> None:
    """Times depend on the machine and on who else uses it; what is imported does not."""
    count = "import sys; before = set(sys.modules); import {}; print(*(set(sys.modules) - before))"
    for module, most, heavy in (
        ("taciturn", 100, {"pydantic", "typer", "rich", "pandas", "numpy", "httpx", "torch"}),
        ("taciturn.cli.main", 450, {"pandas", "numpy", "httpx", "torch", "duckdb", "sqlalchemy"}),
    ):
        names = run_python("-c", count.format(module)).stdout.split()
        assert 1 < len(names) < most
        assert {name for name in names if name in heavy} == set(), module


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_the_check_of_certificates_as_it_is_installed(
    wheel: Path, root: Path, tmp_path: Path
) -> None:
    here = fresh(wheel, "verify", root, tmp_path / "venv")
    here.run("taciturn", "cert", "keygen", "--output", "me", "--name", "me")
    said = here.run("taciturn", "cert", "verify", "none", "--trust", "me.trust.json", code=1)
    assert "none" in said
    here.run("python", "-c", "import taciturn.certificate.recompute, taciturn.accounting.filter")


@pytest.mark.thorough
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("extras", ["server,kubernetes"])
def test_the_gateway_as_it_is_installed(
    extras: str, wheel: Path, root: Path, tmp_path: Path
) -> None:
    here = fresh(wheel, extras, root, tmp_path / "venv")
    here.run("python", "-c", "import taciturn.server.launchers.local, taciturn.data.sql.sandbox")
    if "kubernetes" in extras:
        here.run("python", "-c", "import taciturn.server.launchers.kubernetes.factory")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [here.folder / "bin" / "taciturn", "serve", "--port", str(port)],
        cwd=here.folder,
        env=here.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        answer = None
        for _ in range(600):
            with suppress(httpx.TransportError):
                answer = httpx.get(f"http://127.0.0.1:{port}/v1/health")
                break
            if process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert answer is not None, said
    assert answer.status_code == 200, said
    assert "install taciturn[engine]" in said, "nothing says what local jobs need"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_engine_as_it_is_installed(wheel: Path, root: Path, tmp_path: Path) -> None:
    here = fresh(wheel, "engine", root, tmp_path / "venv")
    asked = ("sample", "taciturn/tiny-medical", "--prompt", "The patient", "--max-new-tokens", "4")
    here.run("taciturn", *asked)
    here.run("taciturn", "doctor")
    here.run("python", "-c", "import taciturn.worker.__main__, taciturn.demo.page")


_FIT = (
    *("fit", "--model", "taciturn/tiny-medical", "--data", "notes.csv", "--target-epsilon", "8"),
    *("--steps", "1", "--batch-size", "8", "--output", "out", "--report-to"),
)
ALONE: dict[str, tuple[str, tuple[str, ...], str]] = {
    "kubernetes": ("kubernetes", ("doctor", "--kubernetes"), "taciturn[server,kubernetes]"),
    "gguf": ("gguf", ("export", "out", "--gguf"), "taciturn[engine]"),
    "tensorboard": ("tensorboard", (*_FIT, "tensorboard"), "taciturn[engine]"),
    "mlflow": ("mlflow", (*_FIT, "mlflow"), "taciturn[engine]"),
    "wandb": ("wandb", (*_FIT, "wandb"), "taciturn[engine]"),
    "quantization": ("bitsandbytes", ("doctor",), ""),
    "bench": ("opacus, riskcal", ("demo",), "taciturn[engine]"),
}
"""Extra that is of use beside another -> what it brings; a command, and what it says is missing."""

INSTALLED = {"verify", "server", "engine", *ALONE}
"""Extras that are installed by themselves, here and above."""


def test_every_extra_is_installed_by_itself(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    beside = {"dev", "docs", "all"}  # what these tests run in, and the site is built with
    assert project["optional-dependencies"].keys() - beside == INSTALLED


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("extra", ALONE)
def test_an_extra_as_it_is_installed(extra: str, wheel: Path, root: Path, tmp_path: Path) -> None:
    here = fresh(wheel, extra, root, tmp_path / "venv")
    modules, command, words = ALONE[extra]
    here.run("python", "-c", f"import taciturn, {modules}")
    assert words in here.run("taciturn", *command, code=1)
    print(f"\n{extra}: {sum(here.sizes()) / 1e6:.0f} MB")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_engine_and_what_goes_with_it_as_it_is_installed(
    wheel: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    here = fresh(wheel, "engine,gguf,tensorboard,mlflow,wandb", root, tmp_path / "venv")
    notes = "".join(f"Patient {number} has a cough.\n" for number in range(40))
    (here.folder / "notes.csv").write_text(f"text\n{notes}", encoding="utf-8")
    (here.folder / "job.yaml").write_text(
        "report_to: [tensorboard, wandb, csv]\n", encoding="utf-8"
    )
    here.run("taciturn", *_FIT[:-1], "-f", "job.yaml")
    here.run("taciturn", "export", "out", "--gguf", "q8_0")
