import math

import torch

from medclip_oc.losses import clip_loss


def features(rows: int, seed: int) -> torch.Tensor:
    made = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(made, dim=-1)


def test_two_pairs_by_hand() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # the second text looks like the first image
    loss = clip_loss(images, texts, torch.tensor(2.0))
    # rows: image 1 sees 2, 2 and image 2 sees 0, 0; columns: each text sees 2, 0
    columns = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    assert math.isclose(loss.item(), (math.log(2) + columns) / 2, rel_tol=1e-6)


def test_features_that_say_nothing_cost_ln_g() -> None:
    same = torch.ones(8, 4) / 2
    assert math.isclose(clip_loss(same, same, torch.tensor(10.0)).item(), math.log(8), rel_tol=1e-6)


def test_gradients() -> None:
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    inputs = (features(5, 1).requires_grad_(), features(5, 2).requires_grad_(), scale)
    assert torch.autograd.gradcheck(clip_loss, inputs)
