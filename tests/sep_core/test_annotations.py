import subprocess
import sys

import pytest
import torch

from sep_core.pixels import project, to_images


def test_a_wrong_dtype_is_refused_at_run_time() -> None:
    with pytest.raises(Exception, match="Type-check error"):
        to_images(torch.zeros(1, 3, 4, 4))


def test_shapes_that_do_not_fit_each_other_are_refused_at_run_time() -> None:
    with pytest.raises(Exception, match="Type-check error"):
        project(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5), 1)


@pytest.mark.parametrize("module", ["sep_core", "sep_core.config"])
def test_what_the_application_imports_brings_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert not {"torch", "torchvision", "jaxtyping", "numpy"} & set(printed.stdout.split())
