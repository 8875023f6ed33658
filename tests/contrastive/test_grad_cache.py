"""The cached step equals one big batch, for every parameter, on one process."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from medclip_oc.contrastive import grad_cache
from medclip_oc.contrastive.reference import gradients, plain_step
from medclip_oc.models.clip import Towers
from medclip_oc.runtime import devices
from tests.support.reference import (
    DROPOUT,
    HF,
    RESNET,
    batch,
    build,
    cached,
    timm,
    worst_error,
)
from tests.support.tiny_models import TEXT, VIT

TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "vit": (VIT, TEXT, 32),
    "resnet": (RESNET, TEXT, 32),
    "timm": (timm("test_vit"), TEXT, 160),
    "hf": (VIT, HF, 32),
    "patch dropout": (DROPOUT, TEXT, 32),
}
RANDOM = ("hf", "patch dropout")  # BERT's own dropout is on


def check(
    towers: Towers,
    reference: Towers | None = None,
    *,
    loss: str = "clip",
    size: int = 32,
    chunks: tuple[int, int] | None = (5, 5),
    limit: float = 1e-5,
    **settings: Any,
) -> dict[str, torch.Tensor]:
    """The gradients of a cached step of 12 pairs, after a look at whether they are the plain one's;
    that one embeds chunks where random numbers or statistics make them matter.
    """
    reference = reference or deepcopy(towers)
    torch.manual_seed(7)
    wanted = plain_step(reference, loss, *batch(12, size), micro_batches=chunks)
    after = torch.rand(())
    torch.manual_seed(7)
    found = cached(towers, loss=loss, **settings)(*batch(12, size))
    assert torch.rand(()) == after, "or the next step would draw what this one drew"
    torch.testing.assert_close(found, wanted.float())
    assert worst_error(gradients(towers), gradients(reference)) < limit
    return gradients(towers)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize(
    ("name", "loss"), [*((name, "clip") for name in TOWERS), ("vit", "siglip"), ("hf", "siglip")]
)
def test_equals_one_big_batch(name: str, loss: str, keep: int) -> None:
    """In float64, which shows the mechanism itself, not merely that it is close."""
    vision, text, size = TOWERS[name]
    towers = build(vision, text).double()
    chunks = (5, 4) if name in RANDOM else None
    how: dict[str, Any] = {"text_micro_batch_size": 4, "keep_chunks": keep}
    found = check(towers, loss=loss, size=size, chunks=chunks, limit=1e-10, **how)
    bias = {"clip.logit_bias"} if loss == "clip" else set()
    assert found.keys() | bias == dict(towers.named_parameters()).keys()


@pytest.mark.parametrize("name", ["vit", "timm"])
def test_patch_dropout_of_weights_that_know_none(name: str, tmp_path: Path) -> None:
    vision, text, size = TOWERS[name]
    torch.save(build(vision, text).clip.state_dict(), tmp_path / "plain.pt")
    how: dict[str, Any] = {"pretrained": str(tmp_path / "plain.pt"), "patch_dropout": 0.5}
    check(build(vision, text, **how).double(), size=size, limit=1e-10)


@pytest.mark.parametrize("keep", [0, 1, 2, 9])
@pytest.mark.parametrize(("images", "texts"), [(12, 12), (5, 3), (1, 12), (4, 6), (30, 1)])
def test_any_chunks_and_any_number_kept(images: int, texts: int, keep: int) -> None:
    sizes = {"micro_batch_size": images, "text_micro_batch_size": texts}
    # the hardest: each chunk must meet its own random numbers
    check(build(DROPOUT), chunks=(images, texts), keep_chunks=keep, **sizes)


def test_a_single_chunk_runs_once() -> None:
    towers = build()
    forwards = counted(towers.clip.visual.conv1)
    cached(towers, micro_batch_size=12, keep_chunks=0)(*batch(12))
    assert len(forwards) == 1


def test_gradients_are_those_of_this_step_alone() -> None:
    towers = build()
    step = cached(towers)
    step(*batch(12))
    first = gradients(towers)
    step(*batch(12))
    assert all(g.equal(first[name]) for name, g in gradients(towers).items())


@pytest.mark.parametrize("keep", [0, 1])
def test_live_batch_norm(keep: int) -> None:
    """Against the same chunks normalised one by one; running statistics updated once.

    In float64: normalising the 6 values that a channel has in the last layers magnifies rounding.
    """
    towers = build(RESNET, freeze_batch_norm=False).double()
    assert all(module.training for module in towers.modules())
    reference = deepcopy(towers)
    how = {"micro_batch_size": 6, "keep_chunks": keep}
    check(towers, reference, chunks=(6, 6), limit=1e-10, **how)
    wanted = dict(reference.named_buffers())
    for name, found in towers.named_buffers():
        torch.testing.assert_close(found, wanted[name], msg=name)


@pytest.mark.parametrize("keep", [0, 1])
def test_gradient_checkpointing(keep: int) -> None:
    """Blocks that run again inside a backward draw and count nothing twice."""
    check(build(DROPOUT, grad_checkpointing=True), build(DROPOUT), keep_chunks=keep)


@pytest.mark.parametrize("keep", [0, 1])
def test_bf16_follows_one_big_batch(keep: int) -> None:
    towers = build()
    reference = deepcopy(towers)
    with torch.autocast("cpu", torch.bfloat16):
        plain_step(reference, "clip", *batch(12))
    cached(towers, micro_batch_size=4, precision="bf16", keep_chunks=keep)(*batch(12))
    # bf16 keeps 8 bits; sums over other chunk sizes round otherwise
    assert worst_error(gradients(towers), gradients(reference)) < 0.05


def test_loss_scaling() -> None:
    """The scaler's factor goes in once, and what it takes out again is the plain gradient."""
    towers = build()
    reference = deepcopy(towers)
    wanted = plain_step(reference, "siglip", *batch(12))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(towers.parameters(), lr=0.0)
    found = cached(towers, loss="siglip", scaler=scaler)(*batch(12))
    torch.testing.assert_close(found, wanted)
    scaled = gradients(towers)["clip.logit_bias"]
    torch.testing.assert_close(scaled, 1024 * gradients(reference)["clip.logit_bias"])
    scaler.unscale_(optimizer)
    assert worst_error(gradients(towers), gradients(reference)) < 1e-5


@pytest.mark.slow
def test_compiled_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through torch.compile: dropout draws the same again, and a smaller last chunk is no obstacle.

    The graphs are those of a real run, without code made for them: that would take minutes.
    """
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda embed, options: real(embed, backend="aot_eager"))
    check(build({**DROPOUT, "layers": 1}, {**TEXT, "layers": 1}), compiled=True)


def freeze(towers: Any, *, all_but: str, side: str = "clip.visual.") -> None:
    for name, parameter in towers.named_parameters():
        if name.startswith(side) and all_but not in name:
            parameter.requires_grad_(False)


def counted(module: torch.nn.Module) -> list[None]:
    """Grows by one with each forward of the module."""
    forwards: list[None] = []
    module.register_forward_hook(lambda *_: forwards.append(None))
    return forwards


EFFICIENT = timm("test_efficientnet")
IMAGE, TRANSFORMER = "clip.visual.", "clip.transformer."
PARTLY: dict[str, tuple[dict[str, Any], dict[str, Any], int, str, str, str]] = {
    # vision, text, size, what still trains, its tower, the last frozen block
    "vit": (DROPOUT, TEXT, 32, "resblocks.1.", IMAGE, "visual.transformer.resblocks.0"),
    "resnet": (RESNET, TEXT, 32, "layer3.", IMAGE, "visual.layer2.0"),
    "timm": (EFFICIENT, TEXT, 160, "blocks.3.", IMAGE, "visual.trunk.blocks.2.0"),
    "text": (DROPOUT, TEXT, 32, "resblocks.1.", TRANSFORMER, "transformer.resblocks.0"),
    "hf": (VIT, HF, 32, "layer.1.", "clip.text.", "text.transformer.encoder.layer.0"),
    "a whole tower": (DROPOUT, TEXT, 32, "nothing", IMAGE, "visual.conv1"),
}


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("name", PARTLY)
def test_frozen_blocks_run_once(name: str, keep: int) -> None:
    """What lies before the first block that trains is kept, not run again."""
    vision, text, size, trains, side, block = PARTLY[name]
    towers = build(vision, text)
    freeze(towers, all_but=trains, side=side)
    if name == "text":
        for parameter in (towers.clip.token_embedding.weight, towers.clip.positional_embedding):
            parameter.requires_grad_(False)
    reference = deepcopy(towers)
    inner = towers.clip.get_submodule(block)
    towers.cuts_text()  # tries it once
    forwards = counted(next(m for m in inner.modules() if not list(m.children())))
    check(towers, reference, size=size, keep_chunks=keep)
    assert len(forwards) == 3


def test_frozen_blocks_run_again_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "free_bytes", lambda device: 1000)
    towers = build()
    freeze(towers, all_but="resblocks.1.")
    reference = deepcopy(towers)
    forwards = counted(towers.clip.visual.transformer.resblocks[0].ln_1)
    check(towers, reference)
    assert len(forwards) == 3 + 3


def test_blocks_that_feed_more_than_the_next_one_are_run_again() -> None:
    """A tower of a foreign build is noticed by its features, and computed in full."""
    towers, reference = build(DROPOUT), build(DROPOUT)
    for side in (towers, reference):
        freeze(side, all_but="resblocks.1.")
        seen: list[torch.Tensor] = []
        first, last = side.clip.visual.ln_pre, side.clip.visual.ln_post
        first.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        last.register_forward_hook(
            lambda _, __, output, seen=seen: output + seen.pop().mean(1, keepdim=True)
        )
    # ln_pre's output is used again at the end
    blocks = [towers.clip.visual.ln_pre, *towers.image_blocks()]
    towers.image_blocks = lambda: blocks
    check(towers, reference)


def test_a_tower_gets_one_chunk_at_a_time_as_it_came() -> None:
    """uint8, so that a whole batch never exists in any other form."""
    towers = build()
    given: list[tuple[int, torch.dtype]] = []
    embed = towers.embed_images

    def watched(images: torch.Tensor) -> torch.Tensor:
        given.append((len(images), images.dtype))
        return embed(images)

    towers.embed_images = watched
    cached(towers, keep_chunks=1)(*batch(12))
    # two chunks of 5 and one of 2, then those whose graph was not kept
    assert given == [(size, torch.uint8) for size in (5, 5, 2, 5, 2)]


@pytest.mark.parametrize(
    ("room", "kept"), [(0, (0, 0)), (-9, (0, 0)), (450, (4, 0)), (600, (6, 0)), (1050, (6, 2))]
)
def test_auto_keeps_what_fits(
    monkeypatch: pytest.MonkeyPatch, room: int, kept: tuple[int, int]
) -> None:
    """Chosen once, in the third step, by the size that a graph was seen to have."""
    towers = build(DROPOUT)
    step = cached(towers, micro_batch_size=2, keep_chunks="auto")
    reference = deepcopy(towers)
    step._steps = 2
    step.texts.graph_bytes, step.images.graph_bytes = 100, 200  # as a GPU would say
    parameters = sum(p.numel() * p.element_size() for p in towers.parameters())
    free = math.ceil((parameters + 200 + room) / grad_cache._SHARE) + 1
    monkeypatch.setattr(devices, "free_bytes", lambda device: free)
    torch.manual_seed(7)
    plain_step(reference, "clip", *batch(12), micro_batches=(2, 2))
    torch.manual_seed(7)
    step(*batch(12))
    assert (step.texts.keep, step.images.keep) == kept
    (notice,) = step.notices()
    said = f"the graphs of {kept[1]} of 6 image chunks and {kept[0]} of 6 text chunks are kept"
    assert said in notice
    assert step.notices() == []
    assert worst_error(gradients(towers), gradients(reference)) < 1e-5


def test_auto_keeps_all_of_a_tower_without_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "free_bytes", lambda device: 10**9)
    step = cached(build(), micro_batch_size=2, keep_chunks="auto")
    kept = []
    for _ in range(3):
        step(*batch(12))
        kept.append((step.texts.keep, step.images.keep))
    assert kept == [(0, 0), (0, 0), (6, 6)]
