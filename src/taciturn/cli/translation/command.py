"""`taciturn import-config`: a file of Axolotl or LLaMA-Factory as a job file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taciturn.cli.gateway import Json, say, show_rows
from taciturn.errors import OutputError, SpecError
from taciturn.spec import load_yaml

if TYPE_CHECKING:
    from taciturn.cli.translation.translate import Translation


def import_config(
    config: Annotated[Path, typer.Argument(help="YAML file of Axolotl or LLaMA-Factory.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Job file to write; it must not be there.")
    ] = Path("job.yaml"),
    target_epsilon: Annotated[
        str | None, typer.Option(help="Budget of the fit, which their files have no word for.")
    ] = None,
    privacy_unit: Annotated[
        str | None, typer.Option(help="Column that names whom a row is about.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="File of the rows, in place of theirs.")] = None,
    as_json: Json = False,
) -> None:
    """Translate a file of Axolotl or LLaMA-Factory into a job file, and say what is left out."""
    from taciturn.cli.translation.translate import job_text, translate

    options = {"target_epsilon": target_epsilon, "privacy_unit": privacy_unit, "data": data}
    own_fields = {name: value for name, value in options.items() if value is not None}
    keys = load_yaml(config)
    _check_once(config)
    translation = translate(keys, config.parent, own_fields)
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(job_text(translation, config.name))
    except FileExistsError:
        raise SpecError(f"{output} is there already; name another file with --output") from None
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written ({error.strerror}); name another file with --output"
        ) from None
    _show(translation, output, as_json=as_json)


def _check_once(config: Path) -> None:
    """Raise SpecError for a key that is there twice, of which YAML would drop one in silence."""
    import yaml

    node = yaml.compose(config.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    lines: dict[str, int] = {}
    for key, _ in node.value if node is not None else ():
        line = key.start_mark.line + 1
        if key.value in lines:
            raise SpecError(
                f"{config} has {key.value} at line {lines[key.value]} and at line {line}; keep one"
            )
        lines[key.value] = line


def _show(translation: Translation, output: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_value(translation, output), ensure_ascii=False))
        return
    for title, columns, entries in (
        ("Translated:", ("theirs", "ours"), translation.decisions),
        ("Not honoured:", ("theirs", "reason"), translation.left_out),
        ("Nothing to do:", ("theirs", "reason"), translation.needless),
    ):
        if entries:
            say(title, style="bold")
            show_rows(columns, [[key, text] for key, text in entries.items()])
    if translation.unknown:
        say(f"Unknown keys, which are in no table: {', '.join(translation.unknown)}", style="bold")
    for name in translation.missing:
        say(f"still to be given in {output}: {name}", style="yellow")
    if not translation.missing:
        say(f"{output}: a job file; show what it would do with taciturn plan -f {output}")


def _value(translation: Translation, output: Path) -> dict[str, Any]:
    return {
        "from": translation.tool.name,
        "output": str(output),
        "fields": translation.fields,
        "translated": translation.decisions,
        "not_honoured": translation.left_out,
        "nothing_to_do": translation.needless,
        "unknown": translation.unknown,
        "missing": translation.missing,
    }
