"""What a table still costs, before it starts."""

from collections.abc import Iterable
from pathlib import Path

from benchmarks.strength.cells import Bench, Cell, release_path, surrogate_path, walk
from benchmarks.strength.recipes import CLEAN, NOISE_PASSES, NOISES
from sep_core.config import SEPConfig
from sep_core.costs import forward_gflop, gradient_passes, pattern_passes, training_cost


def missing_gflop(cells: Iterable[Cell], bench: Bench) -> float:
    """Of cells that are not measured: trainings, images not in the cache, surrogates once each."""
    missing = [cell for cell in cells if not bench.done(cell)]
    releases = {cell.release: cell for cell in missing if not _is_kept(cell, bench)}.values()
    walks = [cell for cell in releases if cell.recipe not in NOISES]
    surrogates = {_surrogate(cell, bench): cell for cell in walks}
    return (
        sum(_training(cell, bench) for cell in missing)
        + sum(_release(cell, bench) for cell in releases)
        + sum(
            _surrogate_training(cell, bench)
            for path, cell in surrogates.items()
            if not path.exists()
        )
    )


def _images(cell: Cell, bench: Bench) -> int:
    return len(bench.data(cell.half).train[0])


def _config(cell: Cell, bench: Bench) -> SEPConfig:
    return cell.config(bench.data(cell.half).classes)


def _is_kept(cell: Cell, bench: Bench) -> bool:
    path = release_path(cell, bench.data(cell.half), _config(cell, bench), bench)
    return cell.recipe == CLEAN or path.exists()


def _surrogate(cell: Cell, bench: Bench) -> Path:
    return surrogate_path(cell, bench.data(cell.half), _config(cell, bench), bench)


def _training(cell: Cell, bench: Bench) -> float:
    config = _config(cell, bench)
    forward = forward_gflop(cell.network, config.input_pixels)
    cost = training_cost(cell.countermeasure)
    return 3 * forward * cost * config.appropriator_epochs * _images(cell, bench)


def _release(cell: Cell, bench: Bench) -> float:
    """Of the images alone; a poison by one network trains that network besides."""
    config, images = _config(cell, bench), _images(cell, bench)
    forward = forward_gflop(config.surrogate, config.input_pixels)
    if cell.recipe in NOISES:
        own = _surrogate_training(cell, bench) if cell.recipe == "targeted" else 0.0
        return own + 2 * NOISE_PASSES.get(cell.recipe, 0) * forward * images
    patterns = pattern_passes(config, images, len(config.target_map))
    return 2 * forward * (gradient_passes(walk(cell, config)) * images + patterns)


def _surrogate_training(cell: Cell, bench: Bench) -> float:
    config = _config(cell, bench)
    forward = forward_gflop(config.surrogate, config.input_pixels)
    return 3 * config.epochs * forward * _images(cell, bench)
