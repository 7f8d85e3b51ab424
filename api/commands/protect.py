"""`sepgate protect`: a file through a running service, from upload to verdict, told as it goes."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar
from uuid import uuid4

import httpx2
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from api.commands.client import Client, RequestFailed, Resource

Answer = TypeVar("Answer")

RESULTS = {
    "protected.zip": "archive",
    "report.json": "report",
    "report.html": "report.html",
    "before-after.png": "before-after.png",
}
"""Files, and what of the protection each of them is."""

AWAY = "no answer: the service is asked again for an hour"
REFUSED_SHOWN = 10
NOT_WORKED = 3
"""Exit status, if it is asked for: all is delivered, and the verdict is against it."""

# Names of files come from the archive: they are text, not markup.
console = Console(markup=False)


def protect_file(
    url: str,
    key: str,
    data: Path,
    asked: Mapping[str, Any],
    out: Path,
    check: Callable[[], None] = lambda: None,
    *,
    require_worked: bool = False,
) -> int:
    """Upload, protect, download and print the verdict. Returns the exit status.

    Args:
        asked: `config` and `evaluation` of the request.
        check: called whenever the service is looked at again.
        require_worked: end with NOT_WORKED where the protection does not hold.
    """
    try:
        _check_folder(out)
        client = Client(url, key)
        dataset = client.upload(data)
        megabytes = dataset["size_bytes"] / 1e6
        told = f"uploaded {data} ({megabytes:.1f} MB) as {url}/v1/datasets/{dataset['id']}"
        console.print(told, soft_wrap=True)
        dataset = _follow(client, f"/v1/datasets/{dataset['id']}", "reading", check)
        _print_dataset(dataset)
        _print_warnings(client, dataset["id"], asked)
        protection = _awaited(client.protect(dataset["id"], asked, str(uuid4())), check)
        path = f"/v1/protections/{protection['id']}"
        console.print(f"asked for {url}{path}", soft_wrap=True)
        protection = _follow(client, path, "protecting", check)
        out.mkdir(parents=True, exist_ok=True)
        for name, part in RESULTS.items():
            _awaited(client.download(f"{path}/{part}", out / name), check)
    except (RequestFailed, OSError) as error:
        console.print(str(error), style="red", soft_wrap=True)
        return 1
    except (httpx2.TransportError, httpx2.InvalidURL) as error:
        told = f"expected sepgate at {url}, got {type(error).__name__}: {error}"
        console.print(told, style="red", soft_wrap=True)
        return 1
    report = json.loads((out / "report.json").read_bytes())
    _print_verdict(report, protection, out)
    return NOT_WORKED if require_worked and not report["verdict"]["worked"] else 0


def _check_folder(out: Path) -> None:
    """Before hours are spent on what can't be written there.

    Raises:
        OSError: so it is.
    """
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        told = f"expected a folder to write results to, got {there}: {error.strerror}"
        raise OSError(told) from error


def _awaited(answers: Iterator[Answer | None], check: Callable[[], None]) -> Answer:
    """The first; where there is none, that is said once."""
    told = False
    for answer in answers:
        if answer is not None:
            return answer
        check()
        if not told:
            console.print(AWAY)
        told = True
    raise AssertionError  # they end by an answer, or are broken off


def _follow(client: Client, path: str, verb: str, check: Callable[[], None]) -> Resource:
    """Poll until done, showing progress and ETA; a failure of the work is raised."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}"),
    )
    away = False
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(verb, total=1.0, eta="")
        for resource in client.poll(path):
            check()
            if resource is None:
                if not away:
                    console.print(AWAY)
                away = True
                continue
            away = False
            shown = _line(resource, verb)
            bar.update(
                task,
                completed=resource["progress"],
                description=shown["description"],
                eta=shown["eta"],
            )
            if not console.is_terminal:
                console.print(f"{shown['description']}  {resource['progress']:.0%}  {shown['eta']}")
    assert resource is not None
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
    for refused in dataset["refused"][:REFUSED_SHOWN]:
        console.print(f"  refused {refused['name']}: {refused['reason']}")
    if dataset["refused_count"] > REFUSED_SHOWN:
        console.print(f"  and {dataset['refused_count'] - REFUSED_SHOWN} more")


def _print_warnings(client: Client, dataset_id: str, asked: Mapping[str, Any]) -> None:
    """Where there is an answer: whoever asks for a protection gets it without, too."""
    try:
        warnings = client.plan(dataset_id, asked).get("warnings", [])
    except (RequestFailed, httpx2.TransportError):
        return
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)


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
    for name in RESULTS:
        console.print(f"  {out / name}", highlight=False)
