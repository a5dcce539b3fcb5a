"""Files of a fitted model that are its base's, and have to be: tokenizer and configuration.

They are public, and no row has a part in them. What the base writes is kept before the first row is
read; a fitted model's file that says anything else does not leave.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from taciturn.engine.model.adapter import own_defaults
from taciturn.engine.model.load import LoadedModel
from taciturn.worker.allowlist import NotReleasableError

_CONFIG_ITS_OWN = frozenset({"architectures", "dtype", "torch_dtype", "use_cache"})
_ITS_OWN: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        # How the last call cut and padded: widths that were asked for, never a row's.
        "tokenizer.json": frozenset({"truncation", "padding"}),
        "tokenizer_config.json": frozenset(),
        "special_tokens_map.json": frozenset(),
        "chat_template.jinja": frozenset(),
        "config.json": _CONFIG_ITS_OWN,
        "generation_config.json": frozenset(),
    }
)
"""Names of such files, and the fields in which a fitted model's may differ."""


def keep(base: LoadedModel, folder: Path) -> None:
    """Write the base's own files, before a row is read."""
    model: Any = base.model
    base.tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    if model.can_generate():
        with own_defaults(model):
            model.generation_config.save_pretrained(folder)


def check(path: Path, folder: Path) -> None:
    """Raise NotReleasableError for one of these files that is not as the base's, in `folder`."""
    if path.name not in _ITS_OWN:
        return
    of_base = folder / path.name
    if not of_base.is_file() or _content(path) != _content(of_base):
        raise NotReleasableError(f"{path.name} is not what the base model's own files say")


def _content(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return text
    values = json.loads(text)
    own = _ITS_OWN[path.name]
    return {name: value for name, value in values.items() if name not in own}
