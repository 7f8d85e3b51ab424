"""The demo: the whole job on real photographs, through the service, as any client would do it."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from api import launcher
from api.demo.client import Client, RequestFailed, Resource

# Chosen with `python -m benchmarks.trial` so that two CPU cores are done within five minutes and
# the protection held for every seed tried (few): with fewer images, shown more often, the best
# epoch comes before the patterns are learned. Small batches: so few images are few steps of the
# optimiser.
PER_CLASS, TEST_PER_CLASS = 500, 100
CONFIG: Mapping[str, Any] = {
    "preset": "quick",
    "epsilon_levels": 8,
    "class_steps": 100,
    "steps": 4,
    "checkpoints": 4,
    "epochs": 8,
    "appropriator_epochs": 8,
    "batch_size": 32,
    "learning_rate": 0.05,
}

# Names of files come from the archive: they are text, not markup.
console = Console(markup=False)


def demo(data: Path | None, out: Path) -> int:
    """Start everything, protect, print the verdict, stop everything. Returns the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    # Read by this process and by all that it starts; nothing has read the settings before.
    folder = out.absolute() / "service"
    os.environ["SEPGATE_DATA_DIR"] = str(folder)
    began = time.monotonic()
    _forget(folder)
    try:
        status = _demo(data, out)
    except launcher.ServiceError as error:
        console.print(str(error), style="red")
        return 1
    finally:
        _forget(folder)
    console.print(f"all of it took {time.monotonic() - began:.0f} s; the service is stopped")
    return status


def _demo(data: Path | None, out: Path) -> int:
    config: Mapping[str, Any] = {"preset": "auto"}
    if data is None:
        data, config = _photographs(out), CONFIG
    console.print("starting API, workers, queue and database ...")
    with launcher.service("127.0.0.1", 0) as service:
        console.print(f"ready at {service.url}")
        return protect_file(service.url, launcher.new_key(), data, config, out, service.check)


def _forget(folder: Path) -> None:
    """Remove all but the logs: the service's folder holds originals and keys."""
    for path in folder.glob("*"):
        if path.is_dir() and path.name != "logs":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def protect_file(
    url: str,
    key: str,
    data: Path,
    config: Mapping[str, Any],
    out: Path,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Upload, protect, download and print the verdict. Returns the exit status."""
    try:
        client = Client(url, key)
        dataset = client.upload(data)
        out.mkdir(parents=True, exist_ok=True)
        console.print(f"uploaded {data} ({dataset['size_bytes'] / 1e6:.1f} MB)")
        dataset = _follow(client, f"/v1/datasets/{dataset['id']}", "reading", check)
        _print_dataset(dataset)
        protection = client.protect(dataset["id"], config, str(uuid4()))
        path = f"/v1/protections/{protection['id']}"
        console.print(f"asked for {url}{path}", soft_wrap=True)
        protection = _follow(client, path, "protecting", check)
        for name, part in {
            "protected.zip": "archive",
            "report.json": "report",
            "report.html": "report.html",
            "before-after.png": "before-after.png",
        }.items():
            client.download(f"{path}/{part}", out / name)
    except RequestFailed as error:
        console.print(str(error), style="red")
        return 1
    except (httpx2.TransportError, httpx2.InvalidURL) as error:
        told = f"expected sepgate at {url}, got {type(error).__name__}: {error}"
        console.print(told, style="red", soft_wrap=True)
        return 1
    _print_verdict(json.loads((out / "report.json").read_bytes()), protection, out)
    return 0


def _photographs(out: Path) -> Path:
    from api.demo.photographs import write_zip  # noqa: PLC0415  an extra that only the demo needs

    path = out / "photographs.zip"
    classes = write_zip(path, PER_CLASS, TEST_PER_CLASS)
    console.print(
        f"the demo's data: 32-pixel patches of {len(classes)} photographs "
        f"({', '.join(classes)}), {PER_CLASS} for training and {TEST_PER_CLASS} for testing "
        f"each, from disjoint stripes; configuration {dict(CONFIG)}"
    )
    return path


def _follow(client: Client, path: str, verb: str, check: Callable[[], None]) -> Resource:
    """Poll until done, showing progress and ETA; a failure of the work is raised."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(verb, total=1.0, eta="")
        for resource in client.poll(path):
            check()
            shown = _line(resource, verb)
            bar.update(
                task,
                completed=resource["progress"],
                description=shown["description"],
                eta=shown["eta"],
            )
            if not console.is_terminal:
                console.print(f"{shown['description']}  {resource['progress']:.0%}  {shown['eta']}")
    if resource["error_code"]:
        raise RequestFailed(f"{resource['error_code']}: {resource['error']}")
    return resource


def _line(resource: Resource, verb: str) -> dict[str, str]:
    running = [step for step in resource.get("steps", ()) if step["state"] == "running"]
    doing = ", ".join(f"{step['kind']} {step['index'] + 1}" for step in running)
    eta = resource.get("eta_seconds")
    return {
        "description": f"{verb}: {doing}" if doing else verb,
        "eta": f"{eta:.0f} s to go" if eta is not None and not resource["done"] else "",
    }


def _print_dataset(dataset: Resource) -> None:
    console.print(
        f"{dataset['images']} images of {len(dataset['classes'])} classes accepted, "
        f"{dataset['refused_count']} files refused"
    )
    for refused in dataset["refused"][:10]:
        console.print(f"  refused {refused['name']}: {refused['reason']}")


def _protected(change: Resource) -> str:
    images, protected = change["images"], change["protected_images"]
    return str(images) if protected == images else f"{protected} protected of {images}"


def _print_verdict(report: Resource, protection: Resource, out: Path) -> None:
    config, change, accuracy = report["config"], report["change"], report["accuracy"]
    console.rule("verdict")
    rows = {
        "images": f"{_protected(change)}, {change['unchanged_images']} of them unchanged",
        "method": f"{config['variant']}, {config['steps']} steps of {config['step_levels']:g} "
        f"through {config['checkpoints']} checkpoints of {config['surrogate']}, "
        f"{config['epochs']} epochs",
        "budget": f"{config['epsilon_levels']} of 255 levels",
        "largest change": f"{change['largest_change_levels']} levels, found in the archive itself",
        "SSIM": f"{change['ssim_mean']:.3f} (5th percentile {change['ssim_p5']:.3f})",
    }
    for name, label in (("clean", "trained on clean"), ("protected", "trained on protected")):
        last, peak = accuracy[name]["accuracy_last"], accuracy[name]["accuracy_peak"]
        rows[label] = f"{last:.1%} on clean test images (peak {peak:.1%})"
    rows["archive"] = f"sha256 {protection['archive']['sha256']}"
    for label, text in rows.items():
        console.print(f"{label + ':':22}{text}", highlight=False, soft_wrap=True)
    console.print(report["verdict"]["sentence"], soft_wrap=True)
    for name in ("protected.zip", "report.json", "report.html", "before-after.png"):
        console.print(f"  {out / name}", highlight=False)
