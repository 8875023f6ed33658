import pytest

from medclip_oc.training.schedule import warmup_cosine


def test_by_hand() -> None:
    factors = [warmup_cosine(step, 2, 6) for step in range(6)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])


def test_no_step_is_wasted() -> None:
    assert all(0 < warmup_cosine(step, 10, 100) <= 1 for step in range(100))
    assert warmup_cosine(100, 10, 100) == pytest.approx(0)


def test_no_warm_up_and_nothing_but_warm_up() -> None:
    assert warmup_cosine(0, 0, 5) == 1
    assert warmup_cosine(4, 5, 5) == 1
