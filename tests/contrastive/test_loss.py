import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss

from medclip_oc.contrastive.loss import Block, contrast
from tests.support.reference import DENSE, by_blocks, inputs


@pytest.mark.parametrize(("name", "theirs"), [("clip", ClipLoss()), ("siglip", SigLipLoss())])
def test_as_open_clip_defines_them(name: str, theirs: torch.nn.Module) -> None:
    given = inputs(9, name)
    wanted = theirs(*given)
    torch.testing.assert_close(DENSE[name](*given), wanted)
    torch.testing.assert_close(contrast(name, Block(*given))[0], wanted.detach())


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("tile", [1, 3, 4, 11, 99])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_tiles_of_any_size_and_blocks_of_rows(name: str, tile: int, ranks: int) -> None:
    """The shares of all blocks add up to the dense loss and its gradients."""
    given = inputs(12, name, scale=20.0)
    wanted = torch.autograd.grad(loss := DENSE[name](*given), given)
    value, shares = by_blocks(name, given, ranks, tile=tile)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(shares, list(wanted))


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_gradients_that_are_not_wanted(name: str, wanted: tuple[bool, bool]) -> None:
    """A frozen tower's are left out; the temperature's is the same all the same."""
    block = Block(*inputs(7, name))
    _, full = contrast(name, block)
    _, some = contrast(name, block, wanted=wanted)
    torch.testing.assert_close(some.scale, full.scale)
    if wanted[1]:
        assert some.images is None
        torch.testing.assert_close(some.texts, full.texts)
    else:
        assert some.texts is None


@pytest.mark.parametrize("name", DENSE)
def test_float32_at_the_highest_temperature(name: str) -> None:
    """Logits from -100 to 100: exponentials that float32 can't hold are never formed."""
    exact = inputs(40, name, scale=100.0)
    exact[1].data[:20] = exact[0].data[:20]  # half the pairs agree fully, half not at all
    wanted = torch.autograd.grad(loss := DENSE[name](*exact), exact)
    block = Block(*(value.detach().float() for value in exact))
    again, found = contrast(name, block)
    torch.testing.assert_close(again, loss.detach(), rtol=1e-5, atol=0)
    for one, other in zip(found, wanted, strict=False):  # InfoNCE has no bias
        assert (one - other).norm() < 1e-4 * other.norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert contrast(name, block)[0] == again, "autocast around it changes nothing"


def test_no_matrix_of_all_pairs() -> None:
    """The largest tensor that is made has G x D entries, or those of a tile."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple) else (made,):
                if isinstance(tensor, torch.Tensor):
                    self.entries = max(self.entries, tensor.numel())
            return made

    images, texts, scale, bias = (value.detach() for value in inputs(300, "siglip"))
    for name, block in (
        ("clip", Block(images, texts, scale)),
        ("siglip", Block(images, texts, scale, bias)),
    ):
        with Largest() as largest:
            contrast(name, block, tile=32)
        assert 0 < largest.entries <= 300 * 6 < 300 * 300
