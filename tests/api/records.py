"""The owner's record, built and taken apart."""

import json
from html.parser import HTMLParser
from uuid import UUID

from api import steps
from api.db import transaction
from api.evidence import report
from api.models import Protection, Step, StepKind
from tests.api.lives import accuracy, protection, steps_of

VOID = {"meta", "img", "path", "polyline", "br", "link", "input"}


class Page(HTMLParser):
    """Elements that are open at the end, tags, addresses and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [str(value) for name, value in attrs if name in {"src", "href"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def measured(protection_id: UUID, clean: float, protected: float) -> None:
    with transaction() as session:
        for each in steps.of(session, protection_id):
            if each.kind is StepKind.EVALUATE:
                last = clean if each.index == steps.CLEAN else protected
                session.get_one(Step, each.id).output = accuracy(last)


def build(protection_id: UUID) -> report.Record:
    return report.build(protection(protection_id), steps_of(protection_id))


def written(protection_id: UUID) -> report.Record:
    pieces = report.write(protection(protection_id), steps_of(protection_id))
    record: report.Record = json.loads(b"".join(pieces))
    return record


def packaged(protection_id: UUID, **figures: int) -> None:
    output_of(protection_id, StepKind.PACKAGE, **figures)


def output_of(protection_id: UUID, kind: StepKind, **figures: int) -> None:
    with transaction() as session:
        first = next(s for s in steps.of(session, protection_id) if s.kind is kind)
        row = session.get_one(Step, first.id)
        row.output = {**(row.output or {}), **figures}


def name_classes(protection_id: UUID, *names: str, fraction: float = 1) -> None:
    """As if these had been asked for; half of the images are theirs."""
    packaged(protection_id, protected_images=2)
    with transaction() as session:
        row = session.get_one(Protection, protection_id)
        assert row.config is not None
        chosen = {"protected_classes": list(names), "protected_fraction": fraction}
        row.config = row.config | chosen


def set_outputs(protection_id: UUID, *outputs: report.Record) -> None:
    with transaction() as session:
        parts = [s for s in steps.of(session, protection_id) if s.kind is StepKind.EVALUATE]
        for each, output in zip(parts, outputs, strict=True):
            session.get_one(Step, each.id).output = output
