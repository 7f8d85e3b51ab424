"""A storm as long as you like: `python -m tests.chaos --faults 100 --seed 1 --database sqlite`.

With `--record FILE` what it told lies there, too.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.files import versions
from tests.chaos.faults import FAULTS
from tests.chaos.storm import storm


def main() -> int:
    """Raise a storm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="postgresql")
    names = [fault.__name__ for fault in FAULTS]
    parser.add_argument("--only", choices=names, default="", help="no other fault")
    parser.add_argument("--record", type=Path, help="docs/chaos.json")
    options = parser.parse_args()
    told: list[str] = []

    def tell(line: str) -> None:
        print(line, flush=True)
        told.append(line)

    began = time.monotonic()
    storm(options.database, options.faults, options.seed, tell, options.only)
    seconds = round(time.monotonic() - began)
    if options.record:
        whole = {
            "database": options.database,
            "seed": options.seed,
            "faults": options.faults,
            "seconds": seconds,
            "told": told,
            "versions": versions(),
        }
        options.record.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(f"faults: {options.faults} 1")
    print(f"time: {seconds} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
