"""Sections of docs/results.md without accuracies of cells: whole jobs, times, and commands."""

import json
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from benchmarks.strength.recipes import CLEAN
from benchmarks.strength.results import Measured
from benchmarks.strength.sections import table
from benchmarks.strength.tables import TABLES, pretrained

SERVICE = [
    *("data", "images", "sides", "input", "largest change", "SSIM", "SSIM, 5th percentile"),
    *("clean", "protected", "seconds"),
]

LONG_SECONDS = 1800


def speed(folder: Path) -> Iterator[str]:
    """What `benchmarks.speed` recorded, each processor in a file of its own."""
    records = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
    }
    if records:
        yield "The aim is a ratio of at least 1.3 in float32, and 2.2 in bfloat16."
    for name, record in records.items():
        made = ", ".join(f"{of} {value}" for of, value in record["versions"].items())
        yield (
            f"`{name}`. Reference: {record['reference']}. `{record['network']}`, batches of "
            f"{record['batch']}, {record['device']}; both sides in turns; {made}."
            f"{' ' + record['note'] if 'note' in record else ''}"
        )
        yield table(["what", "measured"], list(map(list, record["figures"].items())))


def service(folder: Path) -> Iterator[str]:
    """Whole jobs, each from a file that `benchmarks.service` wrote."""
    jobs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not jobs:
        return
    yield (
        "Uploaded, protected and downloaded by curl. Accuracies are in percent, last / peak, on "
        "the data's own test images; sides, in pixels, are of images as they came and left, "
        "`input` is what the networks saw. Where the change shows is a sentence of the report."
    )
    yield table(SERVICE, [_job(job) for job in jobs])
    told = [f"`{job['data']}`: {job['change']['sentence']} {_worst(job)}" for job in jobs]
    yield "\n".join(f"- {line}" for line in told)


def _job(job: dict[str, Any]) -> list[str]:
    change, config, low = job["change"], job["config"], job["sides"]
    one = str(low[0]) if low[0] == low[1] else f"{low[0]} x {low[1]}"
    sizes = f"{low[0]} to {low[1]}, {job['shapes']:,} shapes" if job["shapes"] > 1 else one
    row = [f"`{job['data']}`", f"{change['images']:,}", sizes, str(config["input_pixels"])]
    row += [f"{change['largest_change_levels']} of {config['epsilon_levels']}"]
    row += [f"{change['ssim_mean']:.3f}", f"{change['ssim_p5']:.3f}"]
    row += [
        f"{100 * trained['last']:.1f} / {100 * trained['peak']:.1f}"
        for trained in (job["accuracy"]["clean"], job["accuracy"]["protected"])
    ]
    return [*row, f"{job['seconds']:,} on {job['plan']['threads']} threads"]


def _worst(job: dict[str, Any]) -> str:
    worst = job["change"]["worst"][0]
    return f"Most in `{worst['name']}`, SSIM {worst['ssim']:.3f}."


def times(results: Sequence[Measured]) -> Iterator[str]:
    """What took longer than a benchmark should."""
    trainings = [
        (f"`{r.cell.network}` on {r.images:,} images", r.record.get("seconds", 0.0))
        for r in results
    ]
    releases = {
        (r.cell.half, r.cell.recipe, r.cell.levels, r.cell.surrogate_seed): r
        for r in results
        if r.cell.recipe != CLEAN
    }
    changes = [(_changes(r), r.record["release"].get("seconds", 0.0)) for r in releases.values()]
    long = [[each for each in took if each[1] > LONG_SECONDS] for took in (trainings, changes)]
    if any(long):
        longest = dict(sorted([*long[0], *long[1]], key=itemgetter(1)))
        ordered = sorted(longest.items(), key=itemgetter(1))
        told = (f"{name} {seconds:,.0f} s" for name, seconds in ordered)
        yield (
            f"{len(long[0])} of {len(results)} trainings and {len(long[1])} of {len(releases)} "
            "changes took more than 30 minutes by the clock, partly since other work shared the "
            f"cores. The longest of each: {', '.join(told)}."
        )


def _changes(result: Measured) -> str:
    made = f"the changes of {result.images:,} images by `{result.cell.recipe}`"
    if result.gflop is None:
        return made
    return f"{made} ({result.gflop * result.images / 1000:,.0f} TFLOP)"


def commands() -> Iterator[str]:
    """How everything on the page is measured again."""
    yield (
        "Each command goes on where it was stopped: a training loses half a minute at "
        "most, the images a batch and their patterns; only other methods' images begin anew. ZIP "
        "holds `split/class/file`: for `two-levels` all of CIFAR-10, for `confirm` the first 750 "
        "training and 300 test images of every class, for `twice` the first 1,250 and 500, of "
        "which each takes what those before it do not: the halves have the first 500 and 200, in "
        "their order, as PNG files; the pixels' digest is above. `--full` measures what takes a "
        "bigger machine. Every training augments by crops and flips, as the paper's do (row "
        "`crop-flip`; `none` is without), which is the harder case; other than there it takes 30 "
        "epochs (15 on all images) and a cosine schedule. Both halves have the seeds 1 (surrogate) "
        "and 11 (appropriator) in common, on other images."
    )
    named = {
        f"python -m benchmarks.strength {name} --data ZIP": (cells.__doc__ or name).splitlines()[0]
        for name, cells in TABLES.items()
    }
    backbones = (pretrained.__doc__ or "").splitlines()[0]
    named["python -m benchmarks.strength --weights NETWORK.pt --data ZIP"] = backbones
    pretrain = "python -m benchmarks.pretrain --data ALL.zip --half judge --network small --out ."
    named[pretrain] = "NETWORK.pt, from images that no half has."
    named["python -m benchmarks.paper --data ZIP --out FOLDER"] = "The paper's row, on a GPU."
    named |= {
        "python -m benchmarks.service --data ZIP --preset auto --record docs/service": (
            "A whole job through the service, by curl."
        ),
        "python -m benchmarks.mix FROM.zip TO.zip": "An archive of many sizes and aspect ratios.",
    }
    named["make demo"] = "The picture, which is `demo-output/before-after.png`."
    record = "python -m benchmarks.speed --reference PATH --rounds 15 --record docs/speed/NAME.json"
    named[record] = "The speed of a gradient pass beside the authors'."
    named["python -m benchmarks.strength.page"] = "This page."
    yield table(["command", "measures"], [[f"`{c}`", what] for c, what in named.items()])
