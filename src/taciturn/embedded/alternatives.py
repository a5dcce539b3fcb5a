"""Lists of words for the fields of a template: what a secret might have been."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from taciturn.embedded.vocabulary import vocabulary


@cache
def alternative_lists() -> Mapping[str, tuple[str, ...]]:
    """The embedded lists by name."""
    conditions, people = vocabulary().conditions, vocabulary().people
    return MappingProxyType(
        {
            "diseases": tuple(condition.name for condition in conditions),
            "diseases_of_men": tuple(c.name for c in conditions if "M" in c.sexes),
            "diseases_of_women": tuple(c.name for c in conditions if "F" in c.sexes),
            "given_names": tuple(name for names in people.given_names.values() for name in names),
            "family_names": people.family,
            "digits": tuple("0123456789"),
        }
    )
