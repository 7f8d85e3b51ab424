import torch

from sep_core.randomness import generator


def _draw(seed: str, purpose: str, *counters: int) -> int:
    return int(torch.randint(2**62, (1,), generator=generator(seed, purpose, *counters)))


def test_equal_arguments_draw_equal_numbers() -> None:
    assert _draw("a", "crop", 3) == _draw("a", "crop", 3)


def test_every_argument_counts() -> None:
    draws = [
        _draw("a", "crop", 3),
        _draw("b", "crop", 3),
        _draw("a", "flip", 3),
        _draw("a", "crop", 4),
        _draw("a", "crop", 3, 0),
        _draw("a", "crop"),
    ]
    assert len(set(draws)) == len(draws)


def test_the_parts_do_not_run_into_each_other() -> None:
    assert _draw("a", "crop", 1, 23) != _draw("a", "crop", 12, 3)
    assert _draw("ab", "c") != _draw("a", "bc")


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    before = torch.random.get_rng_state()
    torch.manual_seed(1)
    first = _draw("a", "crop")
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert _draw("a", "crop") == first
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.random.set_rng_state(before)
