"""What was worked, and when."""

from dataclasses import dataclass, field
from uuid import UUID

from api.models import QUEUES, Queue, StepKind
from api.scheduling.leases import Claim


@dataclass
class Totals:
    """When phases began and ended, by protection and kind, and GPU seconds that counted."""

    phases: dict[tuple[UUID, StepKind], tuple[float, float]] = field(default_factory=dict)
    stretches: list[tuple[float, float, float]] = field(default_factory=list)
    last_claim: float = 0.0
    losses: int = 0
    claims: int = 0
    claim_seconds: float = 0.0

    def add(self, claim: Claim, begun: float, ended: float, seconds: float) -> None:
        """A stretch of work that need not be done again."""
        assert claim.protection_id is not None
        key = claim.protection_id, claim.kind
        first, last = self.phases.get(key, (begun, ended))
        self.phases[key] = min(first, begun), max(last, ended)
        if QUEUES[claim.kind] is Queue.GPU:
            self.stretches.append((begun, ended, seconds))

    def useful_between(self, start: float, end: float) -> float:
        """GPU seconds that counted."""
        return sum(
            seconds * max(min(ended, end) - max(begun, start), 0) / max(ended - begun, 1e-9)
            for begun, ended, seconds in self.stretches
        )
