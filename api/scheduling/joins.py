"""Which steps need which: one becomes ready when all those whose results it needs are done."""

from collections.abc import Callable, Collection

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from api.models import Step, StepKind, StepState
from sep_core.cells import is_clean

Named = tuple[StepKind, int]
"""A step of a protection, by kind and index."""
ORDER = (
    *(StepKind.TRAIN, StepKind.PERTURB, StepKind.ENCODE),
    *(StepKind.PACKAGE, StepKind.EVALUATE),
)
"""In which they run."""


def needs(kind: StepKind, index: int, other_kind: StepKind, other_index: int) -> bool:
    """Whether a step needs the results of another of its protection, whose plan is frozen.

    Encoding needs one shard, or where its images leave as they came only that others may follow; a
    training on the originals needs nothing.
    """
    if kind is StepKind.ENCODE and other_kind is StepKind.PERTURB:
        return other_index == index
    if kind is StepKind.EVALUATE and is_clean(index):
        return False
    return ORDER.index(other_kind) < ORDER.index(kind)


def needs_any(others: Collection[Named]) -> Callable[[StepKind, int], bool]:
    """Whether a step needs the results of one of the others: of thousands of each."""
    shards = {index for kind, index in others if kind is StepKind.PERTURB}
    one_of_each = dict(others)

    def of_one(kind: StepKind, index: int) -> bool:
        own = {StepKind.PERTURB: index} if index in shards else {}
        return any(needs(kind, index, *other) for other in (one_of_each | own).items())

    return of_one


def is_used(session: Session, step: Step) -> bool:
    """Whether others may have something of what the step had stored before it was made again.

    Evaluations may have kept pixels of an archive without a word on their rows.
    """
    if step.kind is StepKind.PACKAGE:
        return True
    begun = Step.state.in_((StepState.RUNNING, StepState.DONE)), Step.progress_kept > 0
    of_it = Step.protection_id == step.protection_id, or_(*begun)
    is_after = needs_any([(step.kind, step.index)])
    found = session.execute(select(Step.kind, Step.index).where(*of_it))
    return any(is_after(*other) for other in found)
