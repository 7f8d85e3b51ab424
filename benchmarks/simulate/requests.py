"""What is asked of the simulated service."""

import argparse
import random
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from api import db, keys, protections
from api.models import Dataset, DatasetState, Owner
from sep_core.config import COUNTERMEASURES, PRETRAINED

SIDE = 224
ROWS = [name for name in COUNTERMEASURES if name not in PRETRAINED]


def ask(request: dict[str, Any]) -> None:
    """A protection as a client asks for it, of a data set that is there."""
    images = request["config"]["images"]
    with db.transaction() as session:
        owner_id = _owner(session, request["owner"])
        summary = {"classes": [str(n) for n in range(1000)], "counts": {"train": {"0": images}}}
        dataset = Dataset(
            id=uuid4(),
            owner_id=owner_id,
            name="simulated",
            state=DatasetState.READY,
            sha256="0" * 64,
            size_bytes=images,
            summary=summary | {"median_side": SIDE},
            created_at=db.now(session),
        )
        session.add(dataset)
        session.flush()
        config = {name: value for name, value in request["config"].items() if name != "images"}
        asked = protections.Request(dataset.id, request["preset"], config, request["evaluation"])
        made = protections.create(session, owner_id, asked, None)
        made.requested = made.requested | {"config": request["config"]}


def _owner(session: Session, name: str) -> UUID:
    known = select(Owner.id).where(Owner.name == name)
    if session.scalar(known) is None:
        keys.create(session, name)
    return session.scalars(known).one()


def request(
    images: int, preset: str, *, seeds: int, rows: int = len(ROWS), owner: str = "a"
) -> dict[str, Any]:
    """What is asked for, with the number of images."""
    evaluation = {"countermeasures": ROWS[:rows], "seeds": seeds}
    config = {"images": images, "input_pixels": SIDE, "crop_padding": SIDE // 8}
    return {"preset": preset, "config": config, "evaluation": evaluation, "owner": owner}


def mixed(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Small and large, cheap and dear, of four owners."""
    draws = random.Random(options.seed)  # noqa: S311  nothing secret
    for number in range(options.mixed):
        images = int(options.images * 10 ** draws.uniform(-1.5, 0))
        preset, rows = draws.choice(("fast", "hardened", "paper")), draws.randint(1, len(ROWS))
        yield request(images, preset, seeds=3, rows=rows, owner=f"owner {number % 4}")
