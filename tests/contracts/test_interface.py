"""Names and meaning of the public interfaces stay: Python, command line, YAML, REST.

`interface.txt` has a line for each argument, option and field. What must change is a deprecated
alias, a line of CHANGELOG.md, and `python tests/contracts/test_interface.py` to write it anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer
from fastapi import FastAPI
from pydantic import BaseModel

import taciturn
from taciturn import spec
from taciturn.cli.main import app
from taciturn.server.http.openapi import document
from taciturn.server.http.routes import OPENAI_ROUTERS, ROUTERS, metrics, pages

FILE = Path(__file__).with_name("interface.txt")
_WORDS = ("title", "description", "summary", "example", "examples", "operationId", "tags")


def interface() -> list[str]:
    """All lines, sorted."""
    return sorted({*_python(), *_commands(typer.main.get_command(app)), *_yaml(), *_rest()})


def _python() -> Iterator[str]:
    for name in taciturn.__all__:
        value = getattr(taciturn, name)
        yield f"python {name}"
        if not inspect.isclass(value) or issubclass(value, Exception):
            continue
        if issubclass(value, BaseModel):
            yield from (f"python {name}.{field}" for field in value.model_fields)
        for member, attribute in inspect.getmembers(value):
            if member != "__init__" and (member[0] == "_" or hasattr(BaseModel, member)):
                continue
            yield f"python {name}.{member}"
            if inspect.isfunction(attribute):
                yield from (f"python {name}.{member} {each}" for each in _arguments(attribute))


def _arguments(function: Any) -> Iterator[str]:
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            kind = str(parameter.annotation).removeprefix("Unpack[").removesuffix("]")
            fields = getattr(function.__globals__.get(kind), "__annotations__", {"**": None})
            yield from (f"{name}=" for name in fields)
        elif parameter.kind is parameter.KEYWORD_ONLY:
            yield f"{parameter.name}="
        else:
            yield parameter.name


def _commands(command: Any, path: str = "taciturn") -> Iterator[str]:
    yield f"cli {path}{' (hidden)' if command.hidden else ''}"
    for number, parameter in enumerate(command.params):
        if parameter.param_type_name == "argument":
            place = sum(p.param_type_name == "argument" for p in command.params[:number])
            yield f"cli {path} {place}: {parameter.name} {_kind(parameter)} {parameter.nargs}"
        else:
            flags = "/".join(sorted(parameter.opts + parameter.secondary_opts))
            many = " repeatable" if parameter.multiple else ""
            yield f"cli {path} {flags} {_kind(parameter)}{many} required={parameter.required}"
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, f"{path} {name}")


def _kind(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    return getattr(annotation, "__name__", str(annotation))


def _yaml() -> Iterator[str]:
    for name, kind in vars(spec).items():
        if name.endswith("JobSpec") or name in ("SynthesizeSpec", "DemoSpec"):
            yield from _fields(f"yaml {name}", kind.model_json_schema())


def _fields(name: str, schema: dict[str, Any]) -> Iterator[str]:
    """One line a field, and those of the schemas that it is made of."""
    required = schema.get("required", ())
    for field, value in schema.get("properties", {}).items():
        yield f"{name}.{field} {'required ' if field in required else ''}{_plain(value)}"
    if "properties" not in schema:
        yield f"{name} {_plain(schema)}"


def _plain(schema: Any) -> Any:
    """A schema without what is for people."""
    if isinstance(schema, dict):
        return {key: _plain(schema[key]) for key in sorted(schema) if key not in _WORDS}
    return [_plain(each) for each in schema] if isinstance(schema, list) else schema


def _rest() -> Iterator[str]:
    gateway = FastAPI()
    gateway.state.services = SimpleNamespace(sessions=SimpleNamespace(cookie="session"))
    for router in ROUTERS:
        gateway.include_router(router, prefix="/v1")
    for router in OPENAI_ROUTERS:
        gateway.include_router(router, prefix="/openai/v1")
    gateway.include_router(metrics.router)
    gateway.include_router(pages.router)
    made = document(gateway)
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            place = f"rest {method.upper()} {path}"
            for parameter in operation.get("parameters", ()):
                yield f"{place} {parameter['in']} {parameter['name']} {_plain(parameter)}"
            yield f"{place} body {_plain(operation.get('requestBody', {}))}"
            for status, answer in operation["responses"].items():
                yield f"{place} {status} {_plain(answer) if status < '400' else ''}".rstrip()
    for name, schema in made["components"]["schemas"].items():
        yield from _fields(f"rest {name}", schema)


def test_the_public_interfaces_are_what_they_were() -> None:
    before, now = FILE.read_text(encoding="utf-8").splitlines(), interface()
    assert sorted(set(before) - set(now)) == [], "these have gone"
    assert sorted(set(now) - set(before)) == [], "these are new"


if __name__ == "__main__":
    FILE.write_text("\n".join(interface()) + "\n", encoding="utf-8")
