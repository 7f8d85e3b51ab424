"""Digests of values; of what steps were given and found, a chain from the upload to the verdict."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from api.models import Protection, Step, StepKind

Found = tuple[StepKind, int, Any]
"""Which step it was, and its output."""


def of(value: object) -> str:
    """SHA-256 of a value's JSON, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def given(protection: Protection, step: Step, before: Sequence[Found]) -> str:
    """Of all that a step's result depends on.

    The upload, the frozen configuration, plan and evaluation, which step it is, and what those
    before it have found, which names the digests of what they stored.

    Args:
        before: what the steps whose results it needs have found, in their order.
    """
    frozen = [protection.config, protection.plan, protection.evaluation]
    return of([protection.dataset_sha256, *frozen, step.kind, step.index, before])
