"""A perturbation that does not fit into memory begins again, by a plan with half the batch."""

import logging
from dataclasses import replace

from api import steps
from api.db import transaction
from api.models import Queue, StepKind
from api.plans import speeds, workload
from api.scheduling import endings
from api.scheduling.leases import Claim
from worker import facts
from worker.data import load_job

log = logging.getLogger(__name__)


def halve(claim: Claim) -> bool:
    """Begin the perturbation again by smaller batches; False if it is none, or they can't be.

    Its bytes are those of the new plan, whatever the old one had done. That is recorded.
    """
    try:
        return _halve(claim)
    except Exception:  # the database is away, say: then the step is set back as it is
        log.exception("no smaller batches were planned")
        return False


def _halve(claim: Claim) -> bool:
    if claim.kind is not StepKind.PERTURB:
        return False
    job = load_job(claim)
    batches = workload.batches(job.records, job.config, job.plan)
    if max(map(len, batches)) == 1:
        return False
    half = replace(
        job.plan,
        batch_size=max(job.plan.batch_size // 2, 1),
        max_batch_pixels=max(job.plan.max_batch_pixels // 2, 1),
    )
    device = facts.remembered(facts.measure(Queue.GPU)).plan_device
    loads = workload.planned_loads(job.config, half, job.records)
    costs = speeds.costs(loads, job.config.input_pixels, device)
    with transaction() as session:
        protection = steps.replan(session, claim, job.plan, half, costs)
    log.warning("does not fit with batches of %d images", job.plan.batch_size)
    endings.clean(protection)
    return True
