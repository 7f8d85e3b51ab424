"""What each kind of step does: storage -> sep_core -> storage. One file a kind.

A step is a generator: it yields progress as (done, total), at most 5 s apart, and returns what
it found out.
Only the module of the kind that runs is imported, so that the `cpu` queue never loads PyTorch.
"""

import importlib
from collections.abc import Callable, Generator
from typing import Any

from api.scheduling.leases import Claim

Output = dict[str, Any]
Work = Generator[tuple[int, int], None, Output]


def run(claim: Claim, tick: Callable[[int, int], None]) -> Output:
    """Run the claimed step to its end; `tick` gets every yield and may raise to break it off."""
    work: Work = importlib.import_module(f"worker.steps.{claim.kind}").run(claim)
    try:
        while True:
            tick(*next(work))
    except StopIteration as end:
        output: Output = end.value
        return output
    finally:
        work.close()
