"""Origin of prepared data: kept beside them, and compared before a run goes on with them.

A report says what is protected from here, and never from a later call. The file is private: it
holds a digest of rows, and names of files.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from taciturn.data.database import is_table
from taciturn.data.declared import DeclaredRows, Reference
from taciturn.data.location import locate
from taciturn.data.tokens.encoding import Tokenizer
from taciturn.data.unit import unit_name
from taciturn.errors import CheckpointError, TaciturnError
from taciturn.spec import DataSpec

ORIGIN = "origin.json"

_NAMES = {"tokenizer": "tokenizer", "chat_template": "chat template", "source": "data set"}


class Origin(BaseModel):
    """Everything that prepared data followed from.

    Attributes:
        spec: how rows became records and units, with the tokens that are kept of a record.
        seed: keys which records a unit keeps.
        tokenizer: SHA-256 of all that the tokenizer does.
        chat_template: of the tokenizer, as SHA-256.
        declared_units: how many units the data's owner declared; None for one's own rows.
        source: of declared rows: SHA-256 of where they are and which side of a split they are.
        files: what the file system says of each file that was read, taken before; empty where it
            says nothing that would change with the rows. Private.
        rows: SHA-256 of the records' tokens, targets and units. It follows from private rows and
            has no salt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: DataSpec
    seed: int
    tokenizer: str
    chat_template: str
    declared_units: int | None
    source: str
    files: tuple[tuple[str | int, ...], ...] = ()
    rows: str = ""

    @classmethod
    def of(
        cls, data: object, spec: DataSpec, tokenizer: Tokenizer, max_tokens: int, seed: int
    ) -> Origin:
        """Origin of data that are about to be read; `rows` are not known yet."""
        fields = {name: getattr(spec, name) for name in DataSpec.model_fields}
        declared = data if isinstance(data, DeclaredRows) else None
        return cls(
            spec=DataSpec(**{**fields, "max_tokens": max_tokens}),
            seed=seed,
            tokenizer=_tokenizer_digest(tokenizer),
            chat_template=_sha256(getattr(tokenizer, "chat_template", None)),
            declared_units=None if declared is None else declared.n_units,
            source="" if declared is None else _declared_source(declared),
            files=() if declared is not None else _files(data),
        )

    @classmethod
    def read(cls, folder: Path) -> Origin:
        """Origin of the data in `folder`; raises CheckpointError if it is absent or damaged."""
        try:
            return cls.model_validate_json((folder / ORIGIN).read_bytes())
        except (OSError, ValidationError):
            raise CheckpointError(
                f"{folder / ORIGIN}, which says what the prepared data were made of, is absent, "
                "damaged or of another version; begin anew in another output folder"
            ) from None

    def write(self, folder: Path) -> None:
        """Keep it beside the data in `folder`."""
        (folder / ORIGIN).write_text(self.model_dump_json(), encoding="utf-8")

    @property
    def privacy_unit(self) -> str:
        """Name of the units of these data, as reports say it."""
        return unit_name(self.spec, selected=self.declared_units is None)

    def public_text(self) -> str:
        """The part that does not follow from rows, in one stable text."""
        return json.dumps(self.model_dump(exclude={"files", "rows"}, mode="json"), sort_keys=True)

    def check(self, request: Origin) -> None:
        """Raise CheckpointError unless a call asks for what these data were made by.

        It names what differs. Rows are not part of it.
        """
        for field in DataSpec.model_fields:
            _same(field, getattr(self.spec, field), getattr(request.spec, field))
        _same("seed", self.seed, request.seed)
        _same("n_units", self.declared_units, request.declared_units)
        for field, name in _NAMES.items():
            if getattr(self, field) != getattr(request, field):
                raise CheckpointError(
                    f"the run was begun with another {name} than this call has; give the same to "
                    "resume it, or begin anew in another output folder"
                )


def canonical_source(data: object) -> str | None:
    """Place of the rows, spelled in one way however the caller spells it; None for rows in memory.

    Links and relative paths are resolved. A pattern is the folder below which it looks. A copy of a
    file is other data here: only its owner knows that it is about the same people.

    Raises what reading them would, if nothing is there.
    """
    if not isinstance(data, str | os.PathLike):
        return None
    path_or_url = os.fspath(data)
    if is_table(path_or_url):
        return path_or_url.partition("://")[2]
    location = locate(path_or_url)
    if "file" not in location.filesystem.protocol:
        return str(location.label).strip("'")
    path: str = location.filesystem._strip_protocol(os.path.expanduser(path_or_url))
    while any(mark in path for mark in "*?[") and not os.path.exists(path):
        path = os.path.dirname(path)
    return os.path.realpath(path)


def _same(field: str, recorded: object, requested: object) -> None:
    if recorded != requested:
        raise CheckpointError(
            f"the run was begun with {field}={recorded!r}, this call has {field}={requested!r}; "
            "give the same to resume it, or begin anew in another output folder"
        )


def _declared_source(data: DeclaredRows) -> str:
    """Place of a registered data set; rows in memory, which only tests register, are nowhere."""
    source = data.source.place if isinstance(data.source, Reference) else data.source
    place = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    key = b"" if data.split is None else data.split.key
    column_names = [] if data.names is None else [list(data.names)]
    return _sha256([place, repr(data.split), hashlib.sha256(key).hexdigest(), *column_names])


def _files(data: object) -> tuple[tuple[str | int, ...], ...]:
    """Metadata of the file system about each local file of `data`; nothing of what else there is.

    A file that was written since has another time of change (ctime), which nobody can set.
    """
    if not isinstance(data, str | os.PathLike) or is_table(os.fspath(data)):
        return ()
    try:
        location = locate(os.fspath(data))
        local = "file" in location.filesystem.protocol
        file_stats = [(path, os.stat(path)) for path in location.paths] if local else []
    except (TaciturnError, OSError):
        return ()  # reading says what is wrong, if anything is
    # A name's bytes need be no text; a JSON file's do.
    return tuple(
        (
            path.encode("utf-8", "backslashreplace").decode(),
            of.st_dev,
            of.st_ino,
            of.st_size,
            of.st_mtime_ns,
            of.st_ctime_ns,
        )
        for path, of in file_stats
    )


def _tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer does: two that give the same ids for some rows differ here.

    Not of how it pads and cuts, which calls change and which is not used here.
    """
    backend, model = getattr(tokenizer, "backend_tokenizer", None), None
    if backend is not None:
        model = json.loads(backend.to_str())
        model.pop("truncation", None)
        model.pop("padding", None)
    elif hasattr(tokenizer, "get_vocab"):
        model = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    special = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos")]
    return _sha256([model, special])


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()
