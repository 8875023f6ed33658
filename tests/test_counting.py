"""Counts against the whole matrix in float64: any tile, any crowd of near scores."""

import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medclip_oc import counting, fused


@pytest.fixture(autouse=True, params=["torch", "numba"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways of comparing."""
    if request.param == "numba":
        pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "FROM", 0 if request.param == "numba" else 2**60)
        yield


def normal(rows: int, width: int, seed: int) -> torch.Tensor:
    made = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=-1)


def setting(
    images: torch.Tensor, texts: torch.Tensor, links: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = counting.pair_scores(images, texts, links)
    return (
        counting.best_scores(scores, links[:, 0], len(images)),
        counting.best_scores(scores, links[:, 1], len(texts)),
    )


def dense(
    images: torch.Tensor, texts: torch.Tensor, links: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, on the whole matrix."""
    scores = images.double() @ texts.double().T
    image_best, text_best = setting(images, texts, links)
    scores[links[:, 0], links[:, 1]] = -torch.inf
    found = []
    for axis, best in ((1, image_best[:, None]), (0, text_best[None, :])):
        gaps = scores - best
        above, tied = gaps > counting.TIE, gaps.abs() <= counting.TIE
        found.append(torch.stack([above.sum(axis), tied.sum(axis)]))
    return found[0], found[1]


def check(
    images: torch.Tensor,
    texts: torch.Tensor,
    links: torch.Tensor,
    tile: counting.Tile | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    found = counting.count(images, texts, *setting(images, texts, links), links, tile)
    expected = dense(images, texts, links)
    assert found[0].equal(expected[0])
    assert found[1].equal(expected[1])
    return found


def own(n: int) -> torch.Tensor:
    return torch.arange(n).unsqueeze(1).expand(-1, 2)


@given(
    n=st.integers(1, 70),
    m=st.integers(1, 70),
    high=st.integers(1, 80),
    wide=st.integers(1, 80),
    copies=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
def test_any_tile_and_any_links(
    n: int, m: int, high: int, wide: int, copies: bool, seed: int
) -> None:
    images, texts = normal(n, 8, seed), normal(m, 8, seed + 1)
    if copies:
        texts = texts[torch.arange(m) // 3]
    rng = np.random.default_rng(seed)
    # everyone has a partner, some have several
    pairs = [(i, int(rng.integers(m))) for i in range(n)] + [
        (int(rng.integers(n)), j) for j in range(m)
    ]
    check(images, texts, torch.tensor(sorted(set(pairs))), (high, wide))


def test_more_slices_and_tiles_than_one() -> None:
    images = normal(700, 32, 1)
    texts = torch.nn.functional.normalize(images + normal(700, 32, 2), dim=-1)
    texts[300:400] = texts[:100]
    for tile in (None, (300, 500), (129, 64)):
        check(images, texts, own(700), tile)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(normal(100, 16, 3), normal(100, 16, 4), own(100), (16, 32))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_threads_are_started_once_and_left_as_they_were() -> None:
    number = torch.get_num_threads()
    with counting.threads() as (_, outer):
        with counting.threads(1) as (few, inner):
            assert few == 1
            assert inner == outer
        assert set(outer(lambda _: torch.get_num_threads(), range(8))) == {1}
    with pytest.raises(ZeroDivisionError), counting.threads() as (_, outer):
        next(outer(lambda number: 1 / number, [0]))
    assert torch.get_num_threads() == number
    with counting.threads() as (_, later):
        assert list(later(abs, [-1])) == [1]  # not those that have ended


def test_a_model_that_puts_everything_in_one_place() -> None:
    """Scores that differ by less than float32 can tell: every tile is crowded."""
    point = normal(1, 64, 5)
    images, texts = (
        torch.nn.functional.normalize(point + 1e-6 * normal(150, 64, s), dim=-1) for s in (6, 7)
    )
    found = check(images, texts, own(150), (64, 64))
    assert found[0].sum() > 0
    equal = point.repeat(150, 1)
    above, tied = check(equal, equal, own(150))[0]
    assert above.tolist() == [0] * 150
    assert tied.tolist() == [149] * 150


def test_float32_alone_would_count_wrong() -> None:
    """Scores on either side of the limit of a tie by less than a float32 product is off."""
    width = 512
    image = normal(1, width, 8)
    step = normal(1, width, 9)
    step = torch.nn.functional.normalize(step - (step @ image.T) * image, dim=-1)
    angle = 1.0
    texts = [np.cos(angle) * image + np.sin(angle) * step]
    for gap in np.linspace(0.2e-6, 1.8e-6, 400):
        turned = angle - gap / np.sin(angle)
        texts.append(np.cos(turned) * image + np.sin(turned) * step)
    candidates = torch.cat(texts)
    images = image.expand(len(candidates), -1).contiguous()
    above, tied = check(images, candidates, own(len(candidates)))[0][:, 0].tolist()
    assert above + tied == 400
    assert 100 < above < 300


def test_reduced_precision_of_the_caller_is_put_aside() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        check(normal(300, 64, 10), normal(300, 64, 11), own(300))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_nobody() -> None:
    nothing, some = torch.empty(0, 4), normal(3, 4, 12)
    empty, best = torch.empty(0, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    links = torch.empty(0, 2, dtype=torch.int64)
    for images, texts, first, second in (
        (nothing, some, empty, best),
        (some, nothing, best, empty),
    ):
        counts = counting.count(images, texts, first, second, links)
        assert counts[0].shape == (2, len(images))
        assert counts[1].shape == (2, len(texts))
        assert not counts[0].any()
        assert not counts[1].any()


def test_numba_is_for_large_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "FROM", 100)
    assert not fused.ready(99)
    assert fused.ready(100) == (importlib.util.find_spec("numba") is not None)


def test_numba_compiles_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose home and packages are read-only."""
    numba = pytest.importorskip("numba")
    compiled = numba.njit

    def njit(*args: Any, cache: bool = False, **how: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compiled(*args, **how)

    monkeypatch.setattr(numba, "njit", njit)
    monkeypatch.setattr(fused, "kernel", functools.cache(fused.kernel.__wrapped__))
    scores = torch.tensor([[0.1, 0.5, -torch.inf], [0.3, 0.2, 0.9]])
    limits = torch.tensor([[0.2, 0.3], [0.1, 0.2]]), torch.tensor([[0.2] * 3, [0.05] * 3])
    rows, columns = fused.survey(scores, *limits, step=1)
    assert rows.tolist() == [[1, 1], [1, 2]]
    assert columns.tolist() == [[[0, 1, 0], [1, 1, 0]], [[1, 0, 1], [1, 1, 1]]]
