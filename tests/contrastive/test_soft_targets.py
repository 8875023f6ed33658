"""Soft targets against their definition, pair by pair in float64; and the loss that takes them."""

import pytest
import torch

from medclip_oc.contrastive.reference import gradients
from medclip_oc.contrastive.soft_targets import Labels, Rule, Targets
from tests.support.reference import (
    DENSE,
    batch,
    build,
    by_blocks,
    cached,
    dense_targets,
    inputs,
    labels,
)

RULES = [
    Rule("captions"),
    Rule("captions", smoothing=0.1),
    Rule("concepts", strength=0.3),
    Rule("concepts", strength=1.0),
    Rule("concepts", strength=0.0),
    Rule("concepts", strength=0.5, smoothing=0.2),
    Rule("pairs", smoothing=0.1),
]
BOTH = [("clip", rule) for rule in RULES] + [("siglip", r) for r in RULES if not r.smoothing]


def made(rule: Rule, given: Labels, tile: int = 5) -> Targets:
    """As one process makes them."""
    targets = Targets(rule, given, torch.float64)
    targets.complete(slice(0, len(given.captions)), lambda sums: sums, tile)
    return targets


def test_by_hand() -> None:
    """Pairs 0 and 1 share a caption; 0 and 2 one of three concepts."""
    given = Labels(
        torch.tensor([5, 5, 6]), torch.tensor([1, 2, 3]), torch.tensor([[8, 9], [0, 0], [9, 4]])
    )
    whole = slice(0, 3)
    found = made(Rule("captions"), given).tile(whole, whole)
    torch.testing.assert_close(found, torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 2.0]]).double())
    # overlaps: [1, 1, 1/3], [1, 1, 0], [1/3, 0, 1]; sums 7/3, 2, 4/3
    found = made(Rule("concepts", strength=0.5), given).tile(whole, whole)
    wanted = 0.5 * (1 / 3) * (3 / 7 + 3 / 4)
    assert found[0, 2] == found[2, 0] == pytest.approx(wanted)
    assert found[0, 1] == pytest.approx(0.5 * 1 + 0.5 * (3 / 7 + 1 / 2))
    yes, no = made(Rule("concepts", strength=0.5), given).answers(whole, whole)
    # 0 and 1 share a yes; 2 overlaps with 0 by a third: half of that of (1/2 + 1) / 2
    wanted_yes = torch.tensor([[1 / 2, 1 / 2, 1 / 8], [1 / 2, 1 / 2, 0], [1 / 8, 0, 1]])
    torch.testing.assert_close(yes, wanted_yes.double())
    wanted_no = torch.tensor([[0, 0, 5 / 6], [0, 0, 1], [5 / 6, 1, 0]])
    torch.testing.assert_close(no, wanted_no.double())


@pytest.mark.parametrize(("loss", "rule"), BOTH)
@pytest.mark.parametrize("tile", [1, 4, 30])
def test_tiles_are_parts_of_the_definition(loss: str, rule: Rule, tile: int) -> None:
    given = labels(13)
    wanted = dense_targets(rule, given, loss)
    targets = made(rule, given, tile)
    for first in range(0, 13, tile):
        for start in range(0, 13, tile):
            row, column = slice(first, min(13, first + tile)), slice(start, min(13, start + tile))
            if loss == "clip":
                torch.testing.assert_close(targets.tile(row, column), wanted[row, column])
            else:
                found = torch.stack(targets.answers(row, column))
                torch.testing.assert_close(found, wanted[:, row, column])


@pytest.mark.parametrize(("loss", "rule"), BOTH)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_blocks_of_rows_add_up(loss: str, rule: Rule, ranks: int) -> None:
    given, pairs = inputs(12, loss, scale=20.0), labels(12)
    wanted = torch.autograd.grad(
        one := DENSE[loss](*given, dense_targets(rule, pairs, loss)), given
    )
    value, shares = by_blocks(loss, given, ranks, tile=5, targets=made(rule, pairs))
    torch.testing.assert_close(value, one.detach())
    torch.testing.assert_close(shares, list(wanted))


@pytest.mark.parametrize("loss", ["clip", "siglip"])
@pytest.mark.parametrize("kind", ["captions", "concepts"])
def test_equals_the_plain_loss_where_all_differ(loss: str, kind: str) -> None:
    """Bit for bit: the plain loss is what runs."""
    one, two = build(), build()
    numbers = torch.arange(12)
    apart = Labels(numbers, numbers + 5, numbers[:, None].int() + 1)
    value = cached(one, loss=loss, rule=Rule(kind, strength=0.5))(*batch(12), apart)
    assert value == cached(two, loss=loss)(*batch(12))
    assert all(g.equal(gradients(two)[name]) for name, g in gradients(one).items())
