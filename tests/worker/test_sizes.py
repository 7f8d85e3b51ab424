"""What networks see follows from the data: in the request's check, its estimate and its plan."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update

from api import protections
from api.db import reading, transaction
from api.models import Dataset, StepKind
from api.plans import estimate
from sep_core.config import SEPConfig, as_dict
from tests import pictures
from tests.worker import jobs

pytestmark = [
    pytest.mark.usefixtures("environment"),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]

SHORT: dict[str, Any] = {
    "seed": jobs.SEED,
    "epochs": 1,
    "checkpoints": 1,
    "checkpoints_per_step": 1,
    "appropriator_epochs": 1,
    "steps": 1,
}


def estimated(request: protections.Request) -> SEPConfig:
    """As `validate_only` answers."""
    with reading() as session:
        dataset = protections.check(session, jobs.owner(), request)
        return estimate.estimate(session, dataset, request).config


def frozen(request: protections.Request) -> dict[str, Any]:
    """As a worker decides, which has then trained by it."""
    with transaction() as session:
        protection_id = protections.create(session, jobs.owner(), request, None).id
    jobs.work(until=StepKind.PERTURB)
    protection = jobs.show(protection_id)
    assert protection.error is None
    assert protection.config is not None
    return protection.config


def as_stored(config: SEPConfig) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in as_dict(config).items()}


def test_networks_see_64_pixels_of_images_of_70() -> None:
    dataset = jobs.upload(pictures.zipped(pictures.class_folders(4, 2, (70, 90))))
    request = protections.Request(dataset.id, "fast", SHORT)
    planned, decided = estimated(request), frozen(request)
    assert (planned.input_pixels, planned.crop_padding) == (64, 8)
    assert decided == as_stored(planned)


def test_a_data_set_from_before_its_median_was_kept_is_planned_as_it_was_checked() -> None:
    """By its most frequent sizes, of all splits, though the training images are smaller."""
    large = pictures.class_folders(1, 6, (70, 70))
    files = pictures.class_folders(4, 0, (40, 40)) | {n: f for n, f in large.items() if "test" in n}
    dataset = jobs.upload(pictures.zipped(files))
    assert dataset.summary is not None
    assert dataset.summary["median_side"] == 40
    forget_median(dataset.id, dataset.summary)
    # Fits 64 pixels and not 32.
    request = protections.Request(dataset.id, "fast", SHORT | {"crop_padding": 20})
    assert estimated(request).input_pixels == 64
    assert frozen(request)["input_pixels"] == 64


def forget_median(dataset_id: UUID, summary: dict[str, Any]) -> None:
    kept = {name: value for name, value in summary.items() if name != "median_side"}
    with transaction() as session:
        session.execute(update(Dataset).where(Dataset.id == dataset_id).values(summary=kept))
