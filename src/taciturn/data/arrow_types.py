"""Arrow types from their names, as `str(type)` writes them: what a schema travels as."""

from __future__ import annotations

import re

import pyarrow as pa

from taciturn.errors import DataError

_UNITS = "s|ms|us|ns"
_SIMPLE = {
    "null": pa.null(),
    "bool": pa.bool_(),
    "halffloat": pa.float16(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary(),
    "date32[day]": pa.date32(),
    "date64[ms]": pa.date64(),
    "month_day_nano_interval": pa.month_day_nano_interval(),
    **{f"{sign}int{bits}": getattr(pa, f"{sign}int{bits}")()
       for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"time{bits}[{unit}]": kind(unit)
       for bits, kind, units in ((32, pa.time32, ("s", "ms")), (64, pa.time64, ("us", "ns")))
       for unit in units},
    **{f"duration[{unit}]": pa.duration(unit) for unit in _UNITS.split("|")},
    **{f"timestamp[{unit}]": pa.timestamp(unit) for unit in _UNITS.split("|")},
}  # fmt: skip
_ZONED = re.compile(rf"timestamp\[({_UNITS}), tz=([A-Za-z0-9_+:/-]{{1,60}})\]")
_DECIMAL = re.compile(r"decimal(128|256)\((\d{1,2}), (-?\d{1,2})\)")
_FIXED = re.compile(r"fixed_size_binary\[(\d{1,6})\]")
_NESTED = re.compile(
    r"(list|large_list|list_view|fixed_size_list|struct|map|dictionary)<(.*)>(.*)", re.S
)
_DEPTH = 20


MOST_CHARACTERS = 4000
"""Of the name of a type that travels, at most; `wire.datasets.ColumnView` holds no more."""


def name_of_type(kind: pa.DataType) -> str:
    """Text that a type travels as; of a long one only the beginning, which is no type's."""
    text = str(kind)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."


class OpaqueType(pa.ExtensionType):  # type: ignore[misc]
    """The type of a column that is known by name only, and can be passed on but not read."""

    def __init__(self, name: str) -> None:
        self._name = name
        super().__init__(pa.null(), "taciturn.opaque")

    def __arrow_ext_serialize__(self) -> bytes:
        return self._name.encode()

    @classmethod
    def __arrow_ext_deserialize__(cls, _: pa.DataType, serialized: bytes) -> OpaqueType:
        return cls(serialized.decode())

    def __str__(self) -> str:
        return self._name

    def __reduce__(self) -> tuple[type[OpaqueType], tuple[str]]:
        return OpaqueType, (self._name,)


def type_of_column(text: str) -> pa.DataType:
    """The type of this name, or OpaqueType: a column of any type may stand beside the others."""
    try:
        return parse_type(text)
    except DataError:
        return OpaqueType(text)


def parse_type(text: str, depth: int = 0) -> pa.DataType:
    """The type of this name. A dictionary is its values; views are what they view.

    Raises DataError for what is not one, or is nested too deeply.
    """
    if depth > _DEPTH:
        raise DataError(f"an Arrow type nested more than {_DEPTH} deep cannot be used; flatten it")
    if text in _SIMPLE:
        return _SIMPLE[text]
    if parts := _ZONED.fullmatch(text):
        return pa.timestamp(parts[1], parts[2])
    if parts := _DECIMAL.fullmatch(text):
        return _decimal(int(parts[1]), int(parts[2]), int(parts[3]))
    if parts := _FIXED.fullmatch(text):
        return pa.binary(int(parts[1]))
    if parts := _NESTED.fullmatch(text):
        return _nested(parts[1], parts[2], depth + 1)
    raise _unknown(text)


def _decimal(bits: int, precision: int, scale: int) -> pa.DataType:
    if not 1 <= precision <= (38 if bits == 128 else 76):
        raise _unknown(f"decimal{bits}({precision}, {scale})")
    return (pa.decimal128 if bits == 128 else pa.decimal256)(precision, scale)


def _nested(kind: str, inside: str, depth: int) -> pa.DataType:
    if kind == "map":
        key, *rest = _split(inside)
        item = rest[0] if rest else ""
        return pa.map_(parse_type(key.strip(), depth), parse_type(item.strip(), depth))
    if kind == "dictionary":
        return parse_type(_split(inside)[0].partition("values=")[2], depth)
    fields = [_field(part, depth) for part in _split(inside)] if inside else []
    if kind == "struct":
        return pa.struct(fields)
    if len(fields) != 1:
        raise _unknown(f"{kind}<{inside}>")
    return (pa.large_list if kind == "large_list" else pa.list_)(fields[0].type)


def _field(text: str, depth: int) -> pa.Field:
    name, colon, kind = text.strip().partition(": ")
    if not colon:
        raise _unknown(text)
    return pa.field(name, parse_type(kind.removesuffix(" not null"), depth))


def _split(inside: str) -> list[str]:
    """The parts between commas that are in no brackets."""
    parts, level, start = [], 0, 0
    for index, character in enumerate(inside):
        level += (character in "<[(") - (character in ">])")
        if character == "," and level == 0:
            parts.append(inside[start:index])
            start = index + 1
    return [*parts, inside[start:]]


def _unknown(text: str) -> DataError:
    return DataError(f"{text[:80]!r} is not the name of an Arrow type that can be used")
