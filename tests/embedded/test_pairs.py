"""The embedded pairs: the same for the same seed, of different people, and both answers differ."""

from __future__ import annotations

import pytest

from taciturn.embedded import held_out_pairs, preference_pairs
from taciturn.errors import SpecError


def test_the_same_seed_gives_the_same_rows() -> None:
    assert preference_pairs(3, 20) == preference_pairs(3, 20)
    assert preference_pairs(3, 20) != preference_pairs(4, 20)


def test_held_out_pairs_are_about_others() -> None:
    fitted, held_out = (
        {row["patient_id"] for row in rows} for rows in (preference_pairs(0), held_out_pairs(0))
    )
    assert len(fitted) == 300
    assert len(held_out) == 200
    assert not fitted & held_out


def test_a_pair_is_a_prompt_and_two_answers() -> None:
    for row in preference_pairs(1, 100):
        assert row.keys() == {"prompt", "chosen", "rejected", "patient_id"}
        assert row["chosen"] != row["rejected"]
        assert all(row[name].startswith(" ") for name in ("chosen", "rejected"))
        assert "{" not in "".join(row.values())


@pytest.mark.parametrize("n", [0, 200_001])
def test_too_many_or_too_few_patients_are_refused(n: int) -> None:
    with pytest.raises(SpecError, match=f"n_patients={n}"):
        preference_pairs(n_patients=n)
