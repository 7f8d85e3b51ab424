"""Result files: there whole or not at all, and what they say of where they were made."""

import io
import platform
from pathlib import Path

import torch
import torchvision


def write_whole(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def save(path: Path, value: object) -> None:
    """What `torch.load` gives back, whole or not at all."""
    content = io.BytesIO()
    torch.save(value, content)
    write_whole(path, content.getvalue())


def versions(device: str = "cpu") -> dict[str, str]:
    """Of what figures depend on."""
    cpu = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        device: torch.cuda.get_device_name() if device == "cuda" else cpu,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
