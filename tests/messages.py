"""Print every text that a person may read: messages of errors, and help of the command line.

    python tests/messages.py [FOLDER ...]

One line each, `file:line: text`, in the order of the files; FOLDER, such as `data` or `cli`, limits
the list to these rooms of the package. A name in braces stands for a value that is filled in.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1] / "src" / "taciturn"
_MESSAGES = ("Error", "Exit", "Finding", "BadParameter")
_HELP = {"help", "description", "summary", "short_help", "epilog"}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every (line, text) for people in one module, in order."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    makers = _makers(tree)
    places = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if _called(node) in makers or _called(node).endswith(_MESSAGES):
                values = [*node.args, *(keyword.value for keyword in node.keywords)]
            else:
                values = [keyword.value for keyword in node.keywords if keyword.arg in _HELP]
            for value in values:
                places |= {(part.lineno, part.col_offset): _text(part) for part in _parts(value)}
        elif isinstance(node, ast.FunctionDef) and _is_command(node) and ast.get_docstring(node):
            first = node.body[0]
            help_text = str(ast.get_docstring(node))
            places[first.lineno, first.col_offset] = " ".join(help_text.split())
    for (line, _), text in sorted(places.items()):
        if " " in text:
            yield line, text


def _makers(tree: ast.AST) -> set[str]:
    """Functions of the module that make an error from words."""
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.returns is not None
        and ast.unparse(node.returns).endswith("Error")
    }


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def _is_command(node: ast.FunctionDef) -> bool:
    """True if the docstring of the function is the help of a command."""
    return any(".command" in ast.unparse(decorator) for decorator in node.decorator_list)


def _parts(value: ast.expr) -> Iterator[ast.expr]:
    """The outermost texts in an argument: of a choice between two, both."""
    if isinstance(value, ast.JoinedStr) or (
        isinstance(value, ast.Constant) and isinstance(value.value, str)
    ):
        yield value
    elif isinstance(value, ast.BinOp | ast.IfExp):
        for part in ast.iter_child_nodes(value):
            if isinstance(part, ast.expr):
                yield from _parts(part)


def _text(value: ast.expr) -> str:
    if isinstance(value, ast.Constant):
        return " ".join(str(value.value).split())
    assert isinstance(value, ast.JoinedStr)
    parts = (
        str(part.value) if isinstance(part, ast.Constant) else f"{{{_name(part)}}}"
        for part in value.values
    )
    return " ".join("".join(parts).split())


def _name(part: ast.expr) -> str:
    assert isinstance(part, ast.FormattedValue)
    return ast.unparse(part.value)


def main(folders: list[str]) -> None:
    for path in sorted(_PACKAGE.rglob("*.py")):
        place = path.relative_to(_PACKAGE).as_posix()
        if not folders or any(place == name or place.startswith(f"{name}/") for name in folders):
            for line, text in texts(path):
                print(f"{place}:{line}: {text}")


if __name__ == "__main__":
    main(sys.argv[1:])
