"""The whole job through a running service, by curl alone, and what it leaves an appropriator.

    python -m benchmarks.service --data ZIP [--set epsilon_levels=8 ...] [--max-ratio 0.5]
                                 [--record docs/service]

Starts the embedded service in a folder of its own, uploads, asks, polls, downloads, stops. Figures
come last, one a line, `name: value unit`; `--record` keeps them for docs/results.md. Exits 1 where
protected / clean exceeds `--max-ratio`.
"""

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from benchmarks.figures import show
from benchmarks.files import versions
from benchmarks.options import changes
from benchmarks.resumable import code_sha256

Resource = dict[str, Any]
WAIT_SECONDS = 2
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def main() -> int:
    """Run, print, judge."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEPGATE_DATA_DIR"] = folder
        from api.commands import launcher  # noqa: PLC0415  reads the environment set above

        with launcher.service("127.0.0.1", 0) as service:
            curl = Curl(service.url, launcher.new_key())
            config = {"preset": options.preset} | changes(options.set)
            done = job(curl, options.data, config, Path(folder))
    report = done.report
    if options.record:
        record(done, options.data, options.record)
    clean, protected = report["accuracy"]["clean"], report["accuracy"]["protected"]
    ratio = protected["accuracy_last"] / clean["accuracy_last"]
    figures = {
        "images": (report["change"]["images"], "images"),
        "largest change": (report["change"]["largest_change_levels"], "levels"),
        "ssim": (report["change"]["ssim_mean"], "1"),
        "clean last": (100 * clean["accuracy_last"], "%"),
        "clean peak": (100 * clean["accuracy_peak"], "%"),
        "protected last": (100 * protected["accuracy_last"], "%"),
        "protected peak": (100 * protected["accuracy_peak"], "%"),
        "archive": (done.archive_bytes, "bytes"),
        "time": (done.seconds, "s"),
        "ratio": (ratio, "1"),
    }
    if done.foreseen:
        figures["foreseen"] = (done.foreseen["total"], "s")
    show(figures)
    return int(ratio > options.max_ratio)


class Curl:
    """curl with a key."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._words = ["curl", "--silent", "--show-error", "--fail-with-body"]
        self._words += ["--header", f"Authorization: Bearer {key}"]

    def json(self, path: str, *words: str) -> Resource:
        """A request whose answer is JSON."""
        answer: Resource = json.loads(self._text(path, *words))
        return answer

    def poll(self, path: str) -> Iterator[Resource]:
        """A resource again and again until it is done, as often as the service asks."""
        while True:
            headers, _, body = self._text(path, "--include").partition("\n\n")
            resource: Resource = json.loads(body)
            yield resource
            if resource["done"]:
                return
            told = re.search(r"^retry-after: (\d+)", headers, re.IGNORECASE | re.MULTILINE)
            time.sleep(int(told[1]) if told else WAIT_SECONDS)

    def _text(self, path: str, *words: str) -> str:
        ran = subprocess.run(
            [*self._words, *words, self._url + path], check=False, capture_output=True, text=True
        )
        if ran.returncode:
            sys.exit(f"curl {path}: {ran.stderr.strip()} {ran.stdout.strip()}")
        return ran.stdout

    def save(self, path: str, to: Path) -> None:
        """A request whose answer is a file."""
        subprocess.run([*self._words, "--output", str(to), self._url + path], check=True)


class Done(NamedTuple):
    """A job that has ended.

    Attributes:
        foreseen: seconds of each kind of step and in `total`, by `validate_only`; None where no
            worker had measured its speed yet.
    """

    report: Resource
    seconds: float
    archive_bytes: int
    foreseen: dict[str, float] | None


def job(curl: Curl, data: Path, config: Mapping[str, Any], folder: Path) -> Done:
    """Upload to download."""
    began = time.monotonic()
    dataset = curl.json("/v1/datasets", "--data-binary", f"@{data}")
    dataset = _poll(curl, f"/v1/datasets/{dataset['id']}")
    body = {"dataset_id": dataset["id"], "config": dict(config)}
    only = json.dumps(body | {"validate_only": True})
    asked_at = time.monotonic()
    foreseen = curl.json("/v1/protections", "--json", only)["seconds"]
    began += time.monotonic() - asked_at
    asked = curl.json("/v1/protections", "--json", json.dumps(body))
    protection = _poll(curl, f"/v1/protections/{asked['id']}")
    path = f"/v1/protections/{protection['id']}"
    curl.save(f"{path}/archive", folder / "protected.zip")
    with (folder / "protected.zip").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != protection["archive"]["sha256"]:
        sys.exit(f"expected an archive of {protection['archive']['sha256']}, got {digest}")
    seconds = time.monotonic() - began
    size = (folder / "protected.zip").stat().st_size
    return Done(curl.json(f"{path}/report"), seconds, size, foreseen)


def record(done: Done, data: Path, folder: Path) -> None:
    """What docs/results.md shows of a job, as `folder/NAME.json`."""
    report = done.report
    with zipfile.ZipFile(data) as archive:
        images = [archive.read(n) for n in archive.namelist() if Path(n).suffix.lower() in SUFFIXES]
    sizes = [Image.open(io.BytesIO(image)).size for image in images]
    sides = [side for size in sizes for side in size]
    change = {name: value for name, value in report["change"].items() if name != "histogram"}
    kept = {
        "data": data.stem,
        "data_sha256": report["dataset"]["sha256"],
        "sides": [min(sides), max(sides)],
        "shapes": len(set(sizes)),
        "change": change,
        "accuracy": {
            which: {name: trained[f"accuracy_{name}"] for name in ("last", "peak")}
            for which, trained in report["accuracy"].items()
        },
        "verdict": report["verdict"]["sentence"],
        "training": report["training"] | {"checkpoints": None},
        "config": report["config"],
        "plan": report["plan"],
        "seconds": round(done.seconds),
        "foreseen_seconds": done.foreseen,
        "versions": versions(),
        "code_sha256": code_sha256(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{data.stem}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _poll(curl: Curl, path: str) -> Resource:
    last = 0.0
    for resource in curl.poll(path):
        if time.monotonic() - last > 30 and not resource["done"]:
            last = time.monotonic()
            eta = resource.get("eta_seconds")
            print(f"{resource['state']} {resource['progress']:.0%}, ETA {eta} s", flush=True)
    if resource["error"]:
        sys.exit(f"{resource['error_code']}: {resource['error']}")
    return resource


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="zip of class folders")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--max-ratio", type=float, default=0.5)
    parser.add_argument("--record", type=Path, help="docs/service for docs/results.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
