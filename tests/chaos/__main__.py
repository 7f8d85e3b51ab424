"""A storm as long as you like: `python -m tests.chaos --faults 100 --seed 1 --database sqlite`."""

import argparse
import sys
import time

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
    options = parser.parse_args()
    began = time.monotonic()
    storm(options.database, options.faults, options.seed, print, options.only)
    print(f"faults: {options.faults} 1")
    print(f"time: {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
