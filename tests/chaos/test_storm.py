"""A short storm, on both databases; `python -m tests.chaos` raises long ones."""

import pytest

from tests.chaos.storm import storm

FAULTS = 12
"""All kinds, of which some may find nothing to do harm to."""


@pytest.mark.timeout(1200)  # of all kinds of faults some wait for others to go on
@pytest.mark.parametrize(("database", "seed"), [("sqlite", 1), ("postgresql", 2)])
def test_nothing_is_lost_doubled_changed_or_left_behind(database: str, seed: int) -> None:
    told: list[str] = []
    storm(database, FAULTS, seed, told.append)
    assert len(told) == FAULTS + 4
