"""The benchmark's peers do what their descriptions say, so that the comparison is fair."""

import pytest
import torch
from step import CASES, Config
from step_peers import accumulated, batch, cached, gradients, whole, worst_error

from medclip_oc.config.schema import ModelConfig
from medclip_oc.errors import InputError
from medclip_oc.models import factory
from medclip_oc.models.clip import Towers
from tests.support.tiny_models import TINY


def towers() -> Towers:
    return factory.build(ModelConfig(arch="bench-test", definition=TINY)).towers.train()


@pytest.mark.parametrize("chunks", [2, 4])
def test_accumulation_is_exact_but_for_the_temperature(chunks: int) -> None:
    """As open_clip's: the gradient of one big batch, the temperature's once per chunk."""
    one = towers()
    given = batch(one, 16)
    loss = whole(one, *given)()
    wanted = gradients(one)
    torch.testing.assert_close(accumulated(one, *given, 16 // chunks)(), loss)
    found = gradients(one)
    scale = "clip.logit_scale"
    torch.testing.assert_close(found[scale], chunks * wanted[scale])
    rest = {name: g for name, g in wanted.items() if name != scale}
    assert worst_error(found, rest) < 1e-5
    torch.testing.assert_close(cached(one, *given, 16 // chunks)(), loss)
    assert worst_error(gradients(one), wanted) < 1e-5


def test_a_case_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"--cases: 'speed' is not one of exact, growing"):
        Config(cases=["speed"])
    assert Config().cases == list(CASES)
