"""Every command of `taciturn`, and which names of the package its code leads to."""

from __future__ import annotations

import dis
import importlib
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

import typer

from taciturn.cli.main import app


def commands() -> dict[str, Any]:
    """Path, such as `job list`, -> the command; hidden ones too."""
    return dict(_leaves(typer.main.get_command(app), ()))


def _leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield " ".join(path), command
        return
    for name, child in children.items():
        yield from _leaves(child, (*path, name))


def names(function: Callable[..., Any]) -> set[str]:
    """Return the names that a function's code uses, and those of the functions of the command line
    that it calls."""
    queue, seen, used = [inspect.unwrap(function)], set[CodeType](), set[str]()
    while queue:
        current = queue.pop()
        if not isinstance(current, FunctionType) or current.__code__ in seen:
            continue
        seen.add(current.__code__)
        cells = [cell.cell_contents for cell in current.__closure__ or ()]
        queue += [value for value in cells if isinstance(value, FunctionType)]
        used |= {name for name, _ in _names(current.__code__)}
        queue += _functions({name for name, loaded in _names(current.__code__) if loaded}, current)
    return used


def _names(code: CodeType) -> Iterator[tuple[str, bool]]:
    """Each name that the code uses, and whether it is not an attribute of something."""
    for step in dis.get_instructions(code):
        if step.opname.startswith(("LOAD_", "IMPORT_")) and isinstance(step.argval, str):
            yield step.argval, step.opname in ("LOAD_GLOBAL", "IMPORT_NAME", "IMPORT_FROM")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _functions(used: set[str], caller: FunctionType) -> Iterator[FunctionType]:
    """Return the command line's functions among the names: of the module, or imported in it."""
    modules = [importlib.import_module(name) for name in used if name.startswith("taciturn.cli.")]
    for place in (caller.__globals__, *map(vars, modules)):
        for name in used:
            value = place.get(name)
            if isinstance(value, FunctionType) and value.__module__.startswith("taciturn.cli"):
                yield value
