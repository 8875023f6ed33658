"""Ranks by hand, and against the whole matrix in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from medclip_oc.errors import WorkError
from medclip_oc.evaluation import ranks
from tests.support.tiny_models import unit_vectors


def own(n: int) -> Tensor:
    return torch.arange(n).unsqueeze(1).expand(-1, 2)


def dense(
    images: Tensor, texts: Tensor, links: Tensor, best: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """The definition of the counts, on the whole matrix."""
    scores = images.double() @ texts.double().T
    scores[links[:, 0], links[:, 1]] = -torch.inf
    counts = []
    for axis, limit in ((1, best[0][:, None]), (0, best[1][None, :])):
        gaps = scores - limit
        above, tied = gaps > ranks.TIE, gaps.abs() <= ranks.TIE
        counts.append(torch.stack([above.sum(axis), tied.sum(axis)]))
    return counts


def check(images: Tensor, texts: Tensor, links: Tensor) -> tuple[Tensor, Tensor]:
    """Counts, which must be those of the definition."""
    scores = ranks.pair_scores(images, texts, links)
    sides = ((links[:, 0], len(images)), (links[:, 1], len(texts)))
    best = tuple(ranks.best_scores(scores, *side) for side in sides)
    counts = ranks.count(images, texts, *best, links)
    expected = dense(images, texts, links, best)
    assert counts[0].equal(expected[0])
    assert counts[1].equal(expected[1])
    return counts


def test_several_captions_of_an_image_and_several_images_of_a_caption() -> None:
    """Image 0 has texts 0 and 1; text 2 belongs to images 1 and 2."""
    images = torch.eye(3)
    texts = torch.tensor([[0.0, 1.0, 0.0], [0.6, 0.0, 0.8], [0.0, 0.28, 0.96]])
    links = torch.tensor([[0, 0], [0, 1], [1, 2], [2, 2]])
    # scores: image 0 [0, .6, 0], image 1 [1, 0, .28], image 2 [0, .8, .96]
    image_ranks, text_ranks = ranks.retrieval_ranks(images, texts, links)
    # the better of its two captions comes first; text 0 beats image 1's; image 2 is right
    assert image_ranks.tolist() == [1, 2, 1]
    # text 0: image 1 beats its own, and image 2 ties with it; text 1: image 2 beats its own
    assert text_ranks.tolist() == [2.5, 2, 1]


@pytest.mark.parametrize(
    ("ties", "three_wrong", "two_of_four"),
    [("expected", 2.5, 1 + 2 / 3), ("optimistic", 1, 1), ("pessimistic", 4, 3)],
)
def test_each_rule_for_ties(ties: ranks.Ties, three_wrong: float, two_of_four: float) -> None:
    """All four texts look the same to both images: one is right for image 0, two for image 1."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.6, 0.8]]).repeat(4, 1)
    links = torch.tensor([[0, 0], [1, 1], [1, 2], [0, 3]])
    for chosen, first in ((links[:3], three_wrong), (links, two_of_four)):
        found, _ = ranks.retrieval_ranks(images, texts, chosen, ties=ties)
        assert found.tolist() == pytest.approx([first, two_of_four])


@pytest.mark.parametrize("seed", range(30))
def test_any_tile_and_any_links(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    n, m, *tile = rng.choice([1, 2, 7, 33, 40], 4).tolist()
    images, texts = unit_vectors(n, 8, seed), unit_vectors(m, 8, seed + 1)
    if seed % 2:
        texts = texts[torch.arange(m) // 3]
    # everyone has a partner, some have several
    links = {(i, int(rng.integers(m))) for i in range(n)}
    links |= {(int(rng.integers(n)), j) for j in range(m)}
    monkeypatch.setattr(ranks, "CPU_TILE", tile)
    check(images, texts, torch.tensor(sorted(links)))


@pytest.mark.parametrize("tile", [(2048, 2048), (129, 64)])
def test_threads_slices_and_tiles_change_nothing(
    tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "CPU_TILE", tile)
    monkeypatch.setattr(ranks, "_THREADED", 1)
    images = unit_vectors(701, 32, 1)
    texts = torch.nn.functional.normalize(images + unit_vectors(701, 32, 2), dim=-1)
    texts[300:400] = texts[:100]
    torch.set_num_threads(2)  # the suite has one
    try:
        with torch.inference_mode():  # a mode that threads don't inherit
            check(images, texts, own(701))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_model_that_puts_everything_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that differ by less than float32 can tell: every tile is crowded."""
    monkeypatch.setattr(ranks, "CPU_TILE", (64, 64))
    point = unit_vectors(1, 64, 5)
    images, texts = (
        torch.nn.functional.normalize(point + 1e-6 * unit_vectors(150, 64, s), dim=-1)
        for s in (6, 7)
    )
    assert check(images, texts, own(150))[0].sum() > 0
    equal = point.repeat(150, 1)
    above, tied = check(equal, equal, own(150))[0]
    assert above.tolist() == [0] * 150
    assert tied.tolist() == [149] * 150


def test_float32_alone_would_count_wrong() -> None:
    """Scores on either side of the limit of a tie by less than a float32 product is off."""
    width = 512
    image = unit_vectors(1, width, 8)
    step = unit_vectors(1, width, 9)
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
        check(unit_vectors(300, 64, 10), unit_vectors(300, 64, 11), own(300))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_features_that_are_not_finite() -> None:
    good, bad = unit_vectors(3, 4, 1), unit_vectors(3, 4, 2)
    bad[1, 2] = float("nan")
    for sides, name in (((good, bad), "text"), ((bad, good), "image")):
        with pytest.raises(WorkError, match=f"{name} features hold NaN"):
            ranks.retrieval_ranks(*sides)
