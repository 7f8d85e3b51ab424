"""A short storm, on both databases; `python -m tests.chaos` raises long ones."""

import time

import pytest

from tests.chaos.storm import storm

FAULTS = 12
"""All kinds, of which some may find nothing to do harm to."""


@pytest.mark.timeout(1200)  # of all kinds of faults some wait for others to go on
@pytest.mark.parametrize(("database", "seed"), [("sqlite", 1), ("postgresql", 2)])
def test_nothing_is_lost_doubled_changed_or_left_behind(database: str, seed: int) -> None:
    told: list[str] = []

    def tell(line: str) -> None:
        print(time.strftime("%T"), line)  # for whoever reads why it failed
        told.append(line)

    storm(database, FAULTS, seed, tell)
    assert len(told) == FAULTS + 7
