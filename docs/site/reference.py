"""Pages of the reference that are made of the code, for mkdocs (a hook, see mkdocs.yml).

Nothing here is written by hand, so nothing here can differ from what runs: commands of the command
line, settings of a gateway, error classes and problem codes, fields of a job file, REST routes, and
the public names of Python.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import typer
from fastapi import FastAPI
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import taciturn
from taciturn import errors
from taciturn.cli import ExitCode
from taciturn.cli.gateway import GATEWAY_KEYS, json_option
from taciturn.cli.main import app
from taciturn.server.http.openapi import document
from taciturn.server.http.routes import OPENAI_ROUTERS, ROUTERS
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings
from taciturn.server.problems import CODES, REMEDIES
from taciturn.server.settings import Settings
from taciturn.spec.jobs import JobSpec
from taciturn.wire.events import FAILURES
from taciturn.wire.exits import WorkerExit


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to those that were written."""
    for name, make in PAGES.items():
        files.append(File.generated(config, f"reference/{name}", content=make()))
    return files


def command_line() -> str:
    """Return a page with every command, its arguments and options."""
    parts = [
        "# Command line",
        "Every command says the same with `--help`. Options that are fields of a fit have the same "
        "names in a [job file](job-file.md) and in [Python](python.md).",
        "\n".join(_commands(typer.main.get_command(app), "taciturn")),
        "## Answers for programs",
        "With `--json` a command prints JSON on standard output, and nothing else; notes, progress "
        "and errors go to standard error. Where a command is refused, standard output is empty. A "
        "list has one object on each line, and none where it is empty. What a gateway answers has "
        "the fields of its [REST API](rest.md). Other commands have these keys; infinite figures "
        'are text, such as "Infinity".',
        _table(("command", "keys"), _answers()),
        "## Completion",
        "`taciturn --install-completion` lets bash, zsh, fish or PowerShell complete commands and "
        "options with Tab, from the next shell on. It adds to your shell's own settings. "
        "`taciturn --show-completion` prints the script instead, for you to put where you keep "
        "such scripts.",
        "## Exit codes",
        _table(
            ("code", "meaning", "errors"),
            [(str(int(code)), code.meaning, _errors(code)) for code in ExitCode],
        ),
        "A worker of a gateway ends with other codes, for its launcher:",
        _table(("code", "name"), [(str(int(code)), f"`{code.name}`") for code in WorkerExit]),
    ]
    return _page(parts)


def _errors(code: ExitCode) -> str:
    """Return the errors that a command ends with this code for."""
    if code is ExitCode.REFUSED:
        return "`TaciturnError` and [all below it](errors.md); a time limit; a missing package"
    return ""


def _answers() -> Iterator[tuple[str, str]]:
    """Each command that names the keys of its answer, and these keys."""
    shared = json_option(GATEWAY_KEYS).help
    for path, command in _leaves(typer.main.get_command(app), "taciturn"):
        for option in command.params:
            if "--json" in option.opts and option.help != shared:
                yield f"`{path}`", f"{option.help.partition(': ')[2].rstrip('.')}"


def _leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", {})
    if not children:
        yield path, command
    for name, child in children.items():
        yield from _leaves(child, f"{path} {name}")


def _commands(command: Any, path: str) -> Iterator[str]:
    if command.hidden:
        return
    children = getattr(command, "commands", {})
    if path != "taciturn":
        yield f"## `{path}`\n\n{_sentence(command.help)}\n"
    if command.params and not children:
        yield _table(
            ("argument or option", "meaning", "default"),
            [_option(parameter) for parameter in command.params if not _hidden(parameter)],
        )
    for name, child in children.items():
        yield from _commands(child, f"{path} {name}")


def _hidden(parameter: Any) -> bool:
    return bool(getattr(parameter, "hidden", False))


def _option(parameter: Any) -> tuple[str, str, str]:
    if parameter.param_type_name == "argument":
        name = f"`{parameter.name.upper()}`"
    else:
        name = ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    shown = "" if default in (None, False, ()) or callable(default) else f"`{default}`"
    required = "required" if parameter.required else shown
    return name, _sentence(getattr(parameter, "help", None)), required


def settings() -> str:
    """Return a page with every setting of a gateway and of its Kubernetes launcher."""
    return _page(
        [
            "# Settings",
            "A gateway reads these environment variables when it starts; `taciturn serve --check` "
            "says what does not fit together. Lists and tables are JSON. The console shows them "
            "under *Settings*, with where each comes from, and no secret.",
            _fields(Settings, lambda name: f"TACITURN_{name.upper()}"),
            "## Kubernetes launcher",
            "Fields of the JSON file that `TACITURN_KUBERNETES_CONFIG` names; the chart writes it.",
            _fields(KubernetesSettings, str),
        ]
    )


def _fields(model: type[BaseModel], spelling: Callable[[str], str]) -> str:
    rows = []
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else _default(default)
        meaning = _sentence(field.description) or attributes(model).get(name, "")
        rows.append((f"`{spelling(name)}`", meaning, shown))
    return _table(("name", "meaning", "default"), rows)


def attributes(kind: type) -> dict[str, str]:
    """Return what the docstring of a class says of its attributes, as sentences."""
    _, _, text = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    meanings = {}
    for part in re.split(r"\n(?=    \w)", f"\n{text}")[1:]:
        names, _, meaning = part.strip().partition(": ")
        sentence = " ".join(meaning.split())
        meanings |= {name: f"{sentence[:1].upper()}{sentence[1:]}" for name in names.split(", ")}
    return meanings


def _default(value: object) -> str:
    if value is None or value in ((), {}, ""):
        return ""
    if isinstance(value, BaseModel):
        return f"`{value.model_dump_json(exclude_defaults=True)}`"
    if isinstance(value, tuple):
        return ", ".join(_default(part) for part in value)
    return f"`{value}`"


def error_codes() -> str:
    """Return a page with every error class and every problem code: cause and remedy."""
    classes = [
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, errors.TaciturnError)
    ]
    rows = [(f"`{kind.__name__}`", _parent(kind), *_cause_and_remedy(kind)) for kind in classes]
    problems = [
        (f"`{code}`", str(status), f"{title}.", REMEDIES[code])
        for code, (status, title) in CODES.items()
    ]
    return _page(
        [
            "# Errors",
            "An error states the value that was seen, the bound, and the remedy. It never quotes a "
            "private row. In Python every error is a `taciturn.TaciturnError`; a gateway answers "
            "with an RFC 9457 problem whose `code` is stable.",
            "## Python",
            _table(("class", "also a", "cause", "remedy"), rows),
            "## Problem codes of a gateway",
            _table(("code", "HTTP status", "cause", "remedy"), problems),
            "## Failure codes of a job",
            "The code of a job that has failed, as its requester sees it.",
            _table(
                ("code", "cause and remedy"),
                [(f"`{code}`", f"{text[0].upper()}{text[1:]}.") for code, text in FAILURES.items()],
            ),
        ]
    )


def _parent(kind: type) -> str:
    return ", ".join(f"`{base.__name__}`" for base in kind.__bases__)


def _cause_and_remedy(kind: type) -> tuple[str, str]:
    text = " ".join((inspect.getdoc(kind) or "").split())
    cause, _, remedy = text.partition("Remedy:")
    return cause.strip(), remedy.strip()


def job_file() -> str:
    """Return a page with every field of a job file."""
    return _page(
        [
            "# Job file",
            "`taciturn fit -f job.yaml` reads these fields; an unknown one is refused. Editors "
            "complete and check them by the [JSON Schema](job.schema.json): put "
            "`# yaml-language-server: $schema=ADDRESS` on the first line.",
            *_schema(JobSpec.model_json_schema()),
        ]
    )


def _schema(schema: dict[str, Any]) -> Iterator[str]:
    rows = [
        (f"`{name}`", _kind(value), _sentence(value.get("description")), _json(value))
        for name, value in sorted(schema.get("properties", {}).items())
    ]
    yield _table(("field", "type", "meaning", "default"), rows)


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(choice) for choice in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "$ref" in schema:
        return schema["$ref"].rsplit("/", 1)[-1]
    kind = str(schema.get("type", "any"))
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (
            *(("minimum", "≥"), ("exclusiveMinimum", ">")),
            *(("maximum", "≤"), ("exclusiveMaximum", "<")),
        )
        if key in schema
    ]
    return f"{kind} {', '.join(bounds)}".strip()


def _json(schema: dict[str, Any]) -> str:
    if "default" not in schema:
        return ""
    return "" if schema["default"] is None else f"`{json.dumps(schema['default'])}`"


def job_schema() -> str:
    """Return the JSON Schema of a job file, for editors."""
    return json.dumps(JobSpec.model_json_schema(), indent=2) + "\n"


def rest() -> str:
    """Return a page with every REST route, its permission and its answers."""
    api = openapi()
    by_tag: dict[str, list[tuple[str, str, str]]] = {}
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            meaning = _sentence(operation["description"])
            row = (f"`{method.upper()} {path}`", meaning, _permission(operation))
            by_tag.setdefault((operation.get("tags") or ["Other"])[0], []).append(row)
    parts = [
        "# REST",
        "Send a token as `Authorization: Bearer ...`. Errors are RFC 9457 problems with a stable "
        "[`code`](errors.md). A list is a page: `next_cursor` asks for the next one. All of it, "
        "with bodies and answers, is in the [OpenAPI document](openapi.json), which a gateway also "
        "serves at `/v1/openapi.json`.",
    ]
    for tag, rows in sorted(by_tag.items()):
        title = f"## {tag[0].upper()}{tag[1:]}"
        parts += [title, _table(("request", "meaning", "permission, and who has it"), rows)]
    return _page(parts)


def _permission(operation: dict[str, Any]) -> str:
    action = operation.get("x-taciturn-action")
    if action is None:
        return "a worker" if operation.get("security") else "anybody"
    roles = [str(role) for role in operation["x-taciturn-roles"]]
    return f"`{action}`: {', '.join(roles)}"


def openapi() -> dict[str, Any]:
    """Return the OpenAPI document of a gateway."""
    gateway = FastAPI()
    gateway.state.services = SimpleNamespace(sessions=SimpleNamespace(cookie="session"))
    for router in ROUTERS:
        gateway.include_router(router, prefix="/v1")
    for router in OPENAI_ROUTERS:
        gateway.include_router(router, prefix="/openai/v1")
    return document(gateway)


# What the examples of the page begin with; a test runs them all.
SESSION = """\
import taciturn

client = taciturn.Client("https://taciturn.example", token="tac_...")
data = client.dataset("phee")
job = data.fit("taciturn/tiny-medical", target_epsilon=3)
remote = client.model("mod_00000000000000000001")

events = []
model = taciturn.LLM("taciturn/tiny-medical").fit(
    "notes.csv",
    text_field="text",
    privacy_unit="patient_id",
    target_epsilon=3,
    canaries=20,
    callbacks=[events.append],
    output="fitted",
)
"""
# Classes of objects that a client gives, and where it gives them.
CLIENT_OBJECTS = {
    "taciturn.sdk.dataset.RemoteDataset": "client.dataset(name)",
    "taciturn.sdk.dataset.Quote": "data.plan(...)",
    "taciturn.sdk.model.RemoteModel": "client.model(id)",
    "taciturn.sdk.admin.Administration": "client.admin",
    "taciturn.sdk.audit_log.Auditing": "client.auditor",
    "taciturn.sdk.notifications.NotificationRequests": "client.notifications",
}
TRAINER_SESSION = """\
import pandas
from transformers import TrainingArguments

from taciturn.hf import DPTrainer, PrivacyArguments

base, rows = "taciturn/tiny-medical", pandas.read_csv("notes.csv")
trainer = DPTrainer(
    model=base,
    args=TrainingArguments(
        output_dir="trained", max_steps=3, per_device_train_batch_size=8, disable_tqdm=False
    ),
    train_dataset=rows,
    eval_dataset=pandas.read_csv("public.csv"),
    privacy=PrivacyArguments(target_epsilon=3, unit="patient_id", eval_is_public=True),
)
trainer.train()
"""
TRAINER_NAMES = ("taciturn.hf.DPTrainer", "taciturn.hf.PrivacyArguments")


def python_names() -> list[str]:
    """Return the classes and functions of the page, with their modules."""
    names = [name for name in taciturn.__all__ if not name.endswith("Error")]
    return [
        f"taciturn.{name}"
        for name in sorted(names, key=lambda name: (not name.isupper(), name))
        if inspect.isclass(getattr(taciturn, name)) or inspect.isfunction(getattr(taciturn, name))
    ]


def python() -> str:
    """Return a page with the public names of Python."""
    parts = [
        "# Python",
        "Everything that `import taciturn` offers, but for its [errors](errors.md).",
        "A test runs every example here. Each goes on from this session, in which `notes.csv` has "
        "a column of texts and one of patients:",
        f"```python\n{SESSION}```",
        *(f"::: {name}" for name in python_names()),
        "## What a client gives",
        "These classes have no name in `taciturn`; a client makes their objects.",
        _table(
            ("object", "class"),
            [
                (f"`{way}`", f"[{name.rpartition('.')[2]}][{name}]")
                for name, way in CLIENT_OBJECTS.items()
            ],
        ),
        *(f"::: {name}" for name in CLIENT_OBJECTS),
        "## With the Trainer of transformers",
        "What [DPTrainer](../trainer.md) does with each argument. Its examples go on from here:",
        f"```python\n{TRAINER_SESSION}```",
        *(f"::: {name}" for name in TRAINER_NAMES),
    ]
    return _page(parts)


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return (
        "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        + "\n"
    )


def _sentence(text: str | None) -> str:
    """Return a help text in one line; empty where there is none."""
    return " ".join((text or "").split("\f")[0].split())


PAGES: dict[str, Callable[[], str]] = {
    "command-line.md": command_line,
    "settings.md": settings,
    "errors.md": error_codes,
    "job-file.md": job_file,
    "job.schema.json": job_schema,
    "rest.md": rest,
    "openapi.json": lambda: json.dumps(openapi(), indent=1) + "\n",
    "python.md": python,
}
