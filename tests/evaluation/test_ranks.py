"""Counts against the whole matrix in float64: any tile, any crowd of near scores."""

import functools
import importlib.util
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medclip_oc.evaluation import fused, ranks


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
    scores = ranks.pair_scores(images, texts, links)
    return (
        ranks.best_scores(scores, links[:, 0], len(images)),
        ranks.best_scores(scores, links[:, 1], len(texts)),
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
        above, tied = gaps > ranks.TIE, gaps.abs() <= ranks.TIE
        found.append(torch.stack([above.sum(axis), tied.sum(axis)]))
    return found[0], found[1]


def check(
    images: torch.Tensor,
    texts: torch.Tensor,
    links: torch.Tensor,
    tile: ranks.Tile | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    found = ranks.count(images, texts, *setting(images, texts, links), links, tile)
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


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many threads of torch's; the suite has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_threads_change_nothing(threads: int) -> None:
    """Of the scores, with several parts and slices each; and of the counts."""
    images, texts = normal(1000, 512, 3), normal(1000, 512, 4)
    with torch.inference_mode():  # a mode that threads don't inherit
        wanted = (images.double() * texts.double()).sum(1)
        torch.testing.assert_close(ranks.pair_scores(images, texts, own(1000)), wanted)
        check(images, texts, own(1000), (256, 512))
    assert ranks.pair_scores(images.requires_grad_(), texts, own(1000)).grad_fn is None
    assert torch.get_num_threads() == threads


def test_threads_are_started_once_and_left_as_they_were(threads: int) -> None:
    with ranks.threads() as (parts, run):
        assert parts == threads
        started = threading.active_count()
        names = set(run(lambda _: threading.current_thread().name, range(20)))
        with ranks.threads(1) as (few, inner):
            assert few == 1
            inner(abs, range(20))
        assert set(run(lambda _: torch.get_num_threads(), range(8))) == {1}
        assert threading.active_count() - started <= threads * (threads > 1)
        assert (names == {threading.current_thread().name}) == (threads == 1)

        def nested(_: int) -> bool:
            with ranks.threads() as (_, deeper):
                own = threading.current_thread().name
                return deeper(lambda _: threading.current_thread().name, [0]) == [own]

        assert all(run(nested, range(8))), "a thread of them starts no others"
    assert torch.get_num_threads() == threads


def test_a_part_that_fails_waits_for_the_others(threads: int) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 0:
            raise ZeroDivisionError
        done.append(number)

    with ranks.threads() as (_, run):
        with pytest.raises(ZeroDivisionError):
            run(work, range(threads + 5))
        assert len(done) == (0 if threads == 1 else threads + 4)
    assert torch.get_num_threads() == threads


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
        counts = ranks.count(images, texts, first, second, links)
        assert counts[0].shape == (2, len(images))
        assert counts[1].shape == (2, len(texts))
        assert not counts[0].any()
        assert not counts[1].any()


def test_numba_is_for_large_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "FROM", 100)
    monkeypatch.setattr(fused, "_works", lambda: True)
    assert not fused.ready(99)
    assert fused.ready(100)


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> Any:
    """numba, as in a process that hasn't asked for it yet."""
    for name in ("kernel", "_works"):
        monkeypatch.setattr(fused, name, functools.cache(getattr(fused, name).__wrapped__))
    return pytest.importorskip("numba")


@pytest.mark.parametrize("error", [RuntimeError("no locator"), EOFError(), OSError(28, "full")])
def test_numba_compiles_where_nothing_can_be_kept(
    error: Exception, untried: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine whose disk is read-only or full, or with what a killed process left."""
    compiled = untried.njit

    def njit(*args: Any, cache: bool = False, **how: Any) -> Any:
        if cache:
            raise error
        return compiled(*args, **how)

    monkeypatch.setattr(untried, "njit", njit)
    scores = torch.tensor([[0.1, 0.5, -torch.inf], [0.3, 0.2, 0.9]])
    limits = torch.tensor([[0.2, 0.3], [0.1, 0.2]]), torch.tensor([[0.2] * 3, [0.05] * 3])
    rows, columns = fused.survey(scores, *limits, step=1)
    assert rows.tolist() == [[1, 1], [1, 2]]
    assert columns.tolist() == [[[0, 1, 0], [1, 1, 0]], [[1, 0, 1], [1, 1, 1]]]


@pytest.mark.parametrize("what", ["import", "setting"])
def test_a_broken_numba_is_said_once_and_done_without(
    what: str, untried: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "FROM", 0)
    if what == "import":
        monkeypatch.setitem(sys.modules, "numba", None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    else:
        monkeypatch.setattr(untried.config, "DISABLE_JIT", 1)
    with pytest.warns(UserWarning, match="numba is installed but does not work"):
        check(normal(50, 8, 1), normal(50, 8, 2), own(50))
    check(normal(50, 8, 1), normal(50, 8, 2), own(50))
