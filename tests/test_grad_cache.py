"""The cached step equals one big batch: every parameter, one process and two."""

import zlib
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXT, TINY, VIT
from processes import run

from medclip_oc import model
from medclip_oc.config import ModelConfig
from medclip_oc.distributed import World
from medclip_oc.grad_cache import CachedStep
from medclip_oc.losses import clip_loss

ONE = World(0, 1, torch.device("cpu"))
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16}
DROPOUT = {**VIT, "patch_dropout": 0.5}


def build(vision: dict[str, Any] = VIT, **settings: Any) -> model.Towers:
    definition = {**TINY, "vision_cfg": vision, "text_cfg": TEXT}
    name = f"grad-cache-{zlib.crc32(str(vision).encode())}"
    towers = model.build(ModelConfig(arch=name, definition=definition, **settings)).towers
    return towers.train()


def batch(pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(pairs)
    images = torch.randint(256, (pairs, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(1, 400, (pairs, 32), generator=generator)


def gradients(towers: model.Towers) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in towers.named_parameters() if p.grad is not None}


def worst_error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Largest ||g - ref|| / max(||ref||, 1e-4 ||all ref||) over the parameters."""
    assert found.keys() == wanted.keys()
    floor = 1e-4 * torch.stack([g.norm() for g in wanted.values()]).norm()
    errors = [(found[n] - g).norm() / torch.maximum(g.norm(), floor) for n, g in wanted.items()]
    return float(max(errors))


def big_batch(towers: model.Towers, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The reference: one forward, plain autograd, nothing of ours but the model."""
    loss = clip_loss(*towers(images, tokens))
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("chunk", [12, 5, 4, 1])
def test_equals_one_big_batch(vision: dict[str, Any], chunk: int) -> None:
    towers = build(vision)
    reference = deepcopy(towers)
    loss = big_batch(reference, *batch(12))
    cached = CachedStep(towers, clip_loss, ONE, micro_batch_size=chunk)(*batch(12))
    torch.testing.assert_close(cached, loss)
    assert len(gradients(towers)) == sum(1 for _ in towers.parameters())
    assert worst_error(gradients(towers), gradients(reference)) < 1e-5


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_exact_in_float64(vision: dict[str, Any]) -> None:
    """What float32 hides: the mechanism itself, not merely close."""
    towers = build(vision).double()
    reference = deepcopy(towers)
    big_batch(reference, *batch(12))
    CachedStep(towers, clip_loss, ONE, micro_batch_size=5)(*batch(12))
    assert worst_error(gradients(towers), gradients(reference)) < 1e-10


def test_replays_patch_dropout() -> None:
    towers = build(DROPOUT)
    reference = deepcopy(towers)
    torch.manual_seed(7)
    parts = [
        reference(*[side[rows] for side in batch(12)])
        for rows in map(slice, (0, 5, 10), (5, 10, 12))
    ]
    clip_loss(
        torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), parts[0][2]
    ).backward()
    torch.manual_seed(7)
    CachedStep(towers, clip_loss, ONE, micro_batch_size=5)(*batch(12))
    assert worst_error(gradients(towers), gradients(reference)) < 1e-5
    # and the random numbers matter: other ones give another gradient
    other = build(DROPOUT)
    torch.manual_seed(8)
    CachedStep(other, clip_loss, ONE, micro_batch_size=5)(*batch(12))
    assert worst_error(gradients(other), gradients(reference)) > 1e-2


def test_random_numbers_go_on_after_the_step() -> None:
    """The replay must not set the generator back: the next step would repeat this one's dropout."""
    step = CachedStep(build(DROPOUT), clip_loss, ONE, micro_batch_size=6)
    torch.manual_seed(7)
    step(*batch(12))
    after = torch.rand(())
    torch.manual_seed(7)
    assert torch.rand(()) != after


def test_live_batch_norm_updates_running_statistics_once() -> None:
    towers = build(RESNET, freeze_batch_norm=False)
    reference = deepcopy(towers)
    with torch.no_grad():
        for rows in (slice(0, 6), slice(6, 12)):
            reference(*[side[rows] for side in batch(12)])
    CachedStep(towers, clip_loss, ONE, micro_batch_size=6)(*batch(12))
    for (name, found), wanted in zip(
        towers.named_buffers(), dict(reference.named_buffers()).values(), strict=True
    ):
        torch.testing.assert_close(found, wanted, msg=name)


def test_bf16_follows_one_big_batch() -> None:
    towers = build()
    reference = deepcopy(towers)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = reference(*batch(12))
    clip_loss(*outputs).backward()
    CachedStep(towers, clip_loss, ONE, micro_batch_size=4, precision="bf16")(*batch(12))
    # bf16 keeps 8 bits; sums over other chunk sizes round otherwise
    assert worst_error(gradients(towers), gradients(reference)) < 0.05


def _on_ranks(world: World, pairs: int, chunk: int) -> dict[str, Any]:
    towers = build()
    share = pairs // world.size
    own = slice(world.rank * share, (world.rank + 1) * share)
    step = CachedStep(towers, clip_loss, world, micro_batch_size=chunk)
    loss = step(*[side[own] for side in batch(pairs)])
    return {"loss": loss, "gradients": gradients(towers)}


@pytest.mark.parametrize("chunk", [6, 4])
def test_two_processes_equal_one_big_batch(tmp_path: Path, chunk: int) -> None:
    reference = build()
    loss = big_batch(reference, *batch(12))
    for result in run(_on_ranks, 2, tmp_path, 12, chunk):
        torch.testing.assert_close(result["loss"], loss)
        assert worst_error(result["gradients"], gradients(reference)) < 1e-5


def _reduced_bytes(world: World, pairs: int, chunk: int) -> dict[str, Any]:
    """Bytes that DistributedDataParallel averages over ranks during one step."""
    import torch.distributed as dist

    towers = build()
    step = CachedStep(towers, clip_loss, world, micro_batch_size=chunk)
    reduced = 0

    def count(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal reduced
        tensor = bucket.buffer()
        reduced += tensor.numel() * tensor.element_size()
        done = dist.all_reduce(tensor / world.size, async_op=True).get_future()
        return done.then(lambda future: future.value()[0])

    step.parallel.register_comm_hook(None, count)
    share = pairs // world.size
    step(*[side[:share] for side in batch(pairs)])
    return {"reduced": reduced, "bytes": sum(4 * g.numel() for g in gradients(towers).values())}


def test_each_gradient_is_reduced_once(tmp_path: Path) -> None:
    """Four chunks, one reduction: earlier chunks must not talk to the other rank."""
    for result in run(_reduced_bytes, 2, tmp_path, 16, 2):
        assert result["reduced"] == result["bytes"]
