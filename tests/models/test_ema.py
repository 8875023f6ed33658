"""The running average equals its recurrence."""

import pytest
import torch

from medclip_oc.config.schema import OptimConfig
from medclip_oc.models.averaging import Ema
from medclip_oc.training import optimizer as optim
from tests.support.reference import batch, build, cached


def test_the_recurrence() -> None:
    """Over real steps: a_t = d a_(t-1) + (1 - d) w_t, in float64."""
    towers = build().double()
    towers.clip.visual.requires_grad_(False)
    ema = Ema(towers, 0.8)
    wanted = {n: p.detach().clone() for n, p in towers.named_parameters() if p.requires_grad}
    step, optimizer = cached(towers), optim.adamw(towers, OptimConfig(lr=1e-2))
    for _ in range(4):
        step(*batch(12))
        optimizer.step()
        ema.update()
        for name, p in towers.named_parameters():
            if name in wanted:
                wanted[name] = 0.8 * wanted[name] + 0.2 * p.detach()
    found = ema.state_dict()
    assert found.keys() == wanted.keys()
    assert not any(name.startswith("clip.visual.") for name in found)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    moved = towers.clip.text_projection - wanted["clip.text_projection"]
    assert moved.abs().max() > 1e-3, "an average that follows at once would pass as well"


def test_in_place_and_resumed() -> None:
    towers, again = build(), Ema(build(), 0.5)
    ema = Ema(towers, 0.5)
    start = towers.clip.visual.proj.detach().clone()
    with torch.no_grad():
        towers.clip.visual.proj += 1
    ema.update()
    own = {n: p.detach().clone() for n, p in towers.named_parameters()}
    with ema.in_place():
        torch.testing.assert_close(towers.clip.visual.proj.detach(), start + 0.5)
    assert all(p.equal(own[n]) for n, p in towers.named_parameters())
    again.load_state_dict(ema.state_dict())
    assert all(value.equal(ema.tensors[name]) for name, value in again.tensors.items())
    del ema.tensors["clip.logit_scale"]
    with pytest.raises(ValueError, match="other parameters"):
        again.load_state_dict(ema.state_dict())
