"""Rows of the evidence against numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.evidence import matrix
from sep_core.cells import Evaluation
from tests.api.lives import accuracy

ONE = Evaluation(networks=("small",))
shares = st.lists(st.floats(0.01, 1), min_size=24, max_size=24)


def test_one_training_of_each() -> None:
    (row,) = matrix.build(ONE, [accuracy(0.8, 0.9), accuracy(0.2, 0.5)])
    assert row == {
        "network": "small",
        "countermeasure": "crop-flip",
        "seeds": 1,
        "clean": {
            "last": {"mean": 0.8, "min": 0.8, "max": 0.8, "std": None},
            "peak": {"mean": 0.9, "min": 0.9, "max": 0.9, "std": None},
            "renamed": {
                "last": {"mean": 0.8, "min": 0.8, "max": 0.8, "std": None},
                "peak": {"mean": 0.9, "min": 0.9, "max": 0.9, "std": None},
            },
        },
        "protected": {
            "last": {"mean": 0.2, "min": 0.2, "max": 0.2, "std": None},
            "peak": {"mean": 0.5, "min": 0.5, "max": 0.5, "std": None},
            "renamed": {
                "last": {"mean": 0.2, "min": 0.2, "max": 0.2, "std": None},
                "peak": {"mean": 0.5, "min": 0.5, "max": 0.5, "std": None},
            },
        },
        "ratio": {"last": 0.25, "peak": 0.5556},
        "diverged": {"clean": 0, "protected": 0},
        "reused": 0,
        "weights_sha256": None,
    }


def test_a_training_that_diverged_has_no_say() -> None:
    evaluation = Evaluation(countermeasures=("none", "grey"), networks=("small",), seeds=2)
    diverged = {"diverged": "Expected finite losses."}
    some, none = matrix.build(
        evaluation,
        [
            *(accuracy(0.8), accuracy(0.2), diverged, accuracy(0.4)),
            *(accuracy(0.8), diverged, accuracy(0.6), diverged),
        ],
    )
    assert some["diverged"] == {"clean": 1, "protected": 0}
    assert some["clean"]["last"] == {"mean": 0.8, "min": 0.8, "max": 0.8, "std": None}
    assert some["ratio"]["last"] == pytest.approx(0.3 / 0.8)
    assert none["diverged"] == {"clean": 0, "protected": 2}
    assert none["clean"]["last"]["mean"] == pytest.approx(0.7)
    assert (none["protected"], none["ratio"]) == (None, None)


def test_a_pretrained_row_names_its_file() -> None:
    evaluation = Evaluation(
        countermeasures=("grey", "pretrained-tuned"),
        networks=("small", "mlp"),
        weights={"small": "1" * 64, "mlp": "2" * 64},
    )
    rows = matrix.build(evaluation, [accuracy(0.5)] * 8)
    assert [row["weights_sha256"] for row in rows] == [None, "1" * 64, None, "2" * 64]


@given(shares)
def test_means_and_spreads(last: list[float]) -> None:
    evaluation = Evaluation(countermeasures=("none", "grey"), networks=("small", "linear"), seeds=3)
    rows = matrix.build(evaluation, [accuracy(value) for value in last])
    trained = np.array(last).reshape(2, 2, 3, 2)  # network, countermeasure, seed, data
    for number, row in enumerate(rows):
        of_row = trained.reshape(4, 3, 2)[number]
        assert row["network"] == ("small", "linear")[number // 2]
        assert row["countermeasure"] == ("none", "grey")[number % 2]
        for column, name in enumerate(("clean", "protected")):
            values = of_row[:, column]
            assert row[name]["last"]["mean"] == pytest.approx(values.mean(), abs=1e-6)
            assert row[name]["last"]["std"] == pytest.approx(values.std(ddof=1), abs=1e-6)
            assert (row[name]["last"]["min"], row[name]["last"]["max"]) == (
                min(values),
                max(values),
            )
            assert row[name]["peak"]["mean"] == pytest.approx(
                np.maximum(values, 0.5).mean(), abs=1e-6
            )
        clean, protected = of_row.mean(0)
        assert row["ratio"]["last"] == pytest.approx(protected / clean, rel=1e-3, abs=1e-4)


def test_kept_baselines_are_counted() -> None:
    evaluation = Evaluation(networks=("small",), seeds=2)
    found = [accuracy(0.9) | {"reused": at == 2} for at in range(4)]
    assert matrix.build(evaluation, found)[0]["reused"] == 1


def test_as_many_outputs_as_cells() -> None:
    with pytest.raises(ValueError, match="shorter"):
        matrix.build(ONE, [accuracy(0.8)])


def test_a_baseline_that_learned_nothing() -> None:
    (row,) = matrix.build(ONE, [accuracy(0.0, 0.0) | {"accuracy_peak": 0.0}] * 2)
    assert row["ratio"] == {"last": 0.0, "peak": 0.0}
