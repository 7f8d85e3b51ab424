"""Pages in a real browser: the report, and the API's description."""

import shutil
import subprocess
from pathlib import Path

import pytest

from api import main
from api.evidence import report
from tests import pictures
from tests.api.conftest import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]

RECORD: report.Record = {
    "protection_id": "5f3b",
    "dataset": {"name": "<b>photographs</b>", "sha256": "ab" * 32},
    "verdict": {
        "worked": True,
        "decides": True,
        "named": None,
        "sentence": "The protection holds.",
    },
    "accuracy": {
        name: {"accuracy_by_epoch": [0.2, last], "accuracy_last": last, "accuracy_peak": last}
        for name, last in (("clean", 0.9), ("protected", 0.25))
    },
    "by_class": [
        {
            "class": "<u>ant</u>",
            "to_protect": True,
            "test_images": 20,
            "clean": {"last": 0.9, "peak": 0.95},
            "protected": {"last": 0.15, "peak": 0.35},
        }
    ],
    "matrix": [],
    "change": {
        "images": 12,
        "protected_images": 12,
        "scope": "All 12 images are protected.",
        "largest_change_levels": 8,
        "changed_share": 0.98,
        "unchanged_images": 0,
        "ssim_mean": 0.93,
        "ssim_p5": 0.9,
        "psnr_db": 33.3,
        "histogram": [2, 0, 1, 0, 3, 0, 0, 0, 94] + [0] * 56,
        "shows": {"ssim_below": 0.92, "images": 3, "share": 0.25},
        "may_show": {"ssim_below": 0.95, "images": 7, "share": 0.583333},
        "sentence": "It shows in 3 images.",
        "worst": [
            {"name": "<i>sky</i>.png", "ssim": 0.71, "psnr_db": 31.07, "changed_share": 0.995}
        ],
        "archive_sha256": "cd" * 32,
    },
    "training": {"held_out_images": 4, "held_out_from": "test", "sentence": None},
    "config": {"epsilon_levels": 8, "appropriator": "small"},
    "plan": {"threads": 1},
    "refused": [{"name": "<script>document.title='owned'</script>", "reason": "not an image"}],
}


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def shown_at(address: str, folder: Path) -> str:
    """What the page has become when its scripts have run, without the internet."""
    nobody_else = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    profile = f"--user-data-dir={folder / 'profile'}"
    words = [str(CHROMIUM), *FLAGS, nobody_else, profile, "--virtual-time-budget=20000"]
    ran = subprocess.run(
        [*words, "--dump-dom", address], capture_output=True, text=True, check=True
    )
    return ran.stdout


@needs_chromium
def test_the_page_shows_the_record_and_runs_nothing_of_it(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(report.render(RECORD, pictures.encoded(pictures.image(0, 1))))
    shows = shown_at(page.as_uri(), tmp_path)
    assert "<title>sepgate report: &lt;b&gt;photographs&lt;/b&gt;</title>" in shows
    for shown in (
        "The protection holds.",
        "25.0 %",
        "8 levels",
        "33.30 dB",
        "not an image",
        "It shows in",
        "94.00 %",
        "15.0 %",
    ):
        assert shown in shows
    assert "&lt;u&gt;ant&lt;/u&gt;" in shows
    assert "&lt;i&gt;sky&lt;/i&gt;.png" in shows
    assert "owned'</script>" not in shows


@needs_chromium
def test_the_api_describes_itself_without_the_internet(tmp_path: Path) -> None:
    with serving(main.app) as address:
        assert "Upload" in shown_at(f"{address}/", tmp_path)
        shows = shown_at(f"{address}/docs", tmp_path)
    for operation in ("/v1/datasets", "/v1/protections/{protection_id}/archive"):
        assert f'data-path="{operation}"' in shows
