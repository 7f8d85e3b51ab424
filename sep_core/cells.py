"""The matrix of evidence: which trainings judge a protection (`Evaluation`). Imports no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, get_args

from sep_core.config import (
    COUNTERMEASURES,
    PRETRAINED,
    SEED_HEX_DIGITS,
    Countermeasure,
    NetworkName,
    SEPConfig,
)
from sep_core.ranges import Within, check_ranges

MAX_CELLS = 500


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Which trainings judge a protection: the matrix of its evidence.

    Raises:
        ValueError: a field is out of its range; the message names field, expectation and value.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic reads it as a plain attribute

    countermeasures: Annotated[
        tuple[Countermeasure, ...], "what whoever trains on the released data does"
    ] = ("crop-flip",)
    networks: Annotated[
        tuple[NetworkName, ...], "which they train; none stands for `appropriator`"
    ] = ()
    seeds: Annotated[
        int,
        Within(1, MAX_CELLS),
        "trainings of every kind, each from draws of its own; in all at most 500, 2 x networks x "
        "countermeasures x seeds",
    ] = 1
    weights: Annotated[
        Mapping[NetworkName, str],
        "of each network, what the pretrained countermeasures begin with: SHA-256 of the file, "
        "in hexadecimal digits. Frozen with the plan; nobody asks for it",
    ] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _are_names("countermeasures", self.countermeasures, COUNTERMEASURES)
        _are_names("networks", self.networks, get_args(NetworkName))
        if not self.countermeasures:
            raise ValueError("countermeasures: expected at least one, got none")
        check_ranges(self)
        if self.trainings > MAX_CELLS:
            raise ValueError(
                f"evaluation: expected at most {MAX_CELLS} trainings "
                f"(2 x networks x countermeasures x seeds), got {self.trainings}"
            )

    @property
    def trainings(self) -> int:
        """How many cells there are: each is trained on originals and on what leaves."""
        return 2 * max(len(self.networks), 1) * len(self.countermeasures) * self.seeds

    @property
    def pretrained(self) -> tuple[Countermeasure, ...]:
        """Its countermeasures that begin with weights from a file."""
        return tuple(name for name in self.countermeasures if name in PRETRAINED)


@dataclass(frozen=True)
class Cell:
    """One training of an appropriator.

    Attributes:
        network, countermeasure: who trains, and how.
        seed: number of the draws, from 1; the same draws for originals and protected images.
        clean: whether it trains on the originals.
    """

    network: NetworkName
    countermeasure: Countermeasure
    seed: int
    clean: bool


def named(evaluation: Evaluation, config: SEPConfig) -> Evaluation:
    """The evaluation with the configuration's appropriator where it names no network."""
    return replace(evaluation, networks=evaluation.networks or (config.appropriator,))


def cells(evaluation: Evaluation) -> list[Cell]:
    """Every training of an evaluation, in the order in which steps number them.

    Clean and protected alternate; seeds, countermeasures and networks follow, slower and slower.

    Raises:
        ValueError: the evaluation names no network; see `named`.
    """
    if not evaluation.networks:
        raise ValueError("networks: expected at least one, got none")
    return [
        Cell(network, countermeasure, seed, clean)
        for network in evaluation.networks
        for countermeasure in evaluation.countermeasures
        for seed in range(1, evaluation.seeds + 1)
        for clean in (True, False)
    ]


def is_clean(number: int) -> bool:
    """Whether the cell of this number, in the order of `cells`, trains on the originals."""
    return number % 2 == 0


def weights_sha256(
    evaluation: Evaluation, network: NetworkName, countermeasure: Countermeasure
) -> str | None:
    """Of the file that a training begins with, as frozen; None if it begins with none.

    Raises:
        ValueError: a pretrained countermeasure whose file is not frozen.
    """
    if countermeasure not in PRETRAINED:
        return None
    if network not in evaluation.weights:
        raise ValueError(f"weights: expected a digest for {network}, got {evaluation.weights}")
    return evaluation.weights[network]


def cell_config(config: SEPConfig, cell: Cell) -> SEPConfig:
    """What a cell trains by. Its draws are everybody's: nothing of the protection's own seed."""
    return replace(config, appropriator=cell.network, seed=f"{cell.seed:0{SEED_HEX_DIGITS}x}")


def _are_names(field: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    if not set(names) <= set(known) or len(set(names)) < len(names):
        raise ValueError(
            f"{field}: expected different ones of {', '.join(known)}, got {json.dumps(names)}"
        )
