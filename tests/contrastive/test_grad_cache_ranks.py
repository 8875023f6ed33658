"""The cached step over real processes equals one big batch of one process; and what it sends.

All cases of one number of processes run in one start of them: a start takes seconds.
"""

from typing import Any

import pytest
import torch

from medclip_oc.contrastive.grad_cache import CachedStep
from medclip_oc.contrastive.reference import gradients, plain_step
from medclip_oc.contrastive.soft_targets import Labels, Rule
from medclip_oc.runtime import distributed
from medclip_oc.runtime.distributed import World
from tests.support.processes import COLLECTIVES, run, watched
from tests.support.reference import (
    RESNET,
    adapted,
    batch,
    build,
    dense_targets,
    labels,
    worst_error,
)

PAIRS = 16
SIZES = {"micro_batch_size": 3, "text_micro_batch_size": 4}
RULES = {
    "captions": Rule("captions"),
    "concepts": Rule("concepts", strength=0.3),
    "smooth pairs": Rule("pairs", smoothing=0.1),
    "smooth concepts": Rule("concepts", strength=0.6, smoothing=0.2),
}
Case = tuple[str, dict[str, Any], str]
"""Loss, settings of the step, beginning of the names of frozen parameters."""
CASES: dict[str, Case] = {
    "one chunk": ("clip", {"micro_batch_size": 99}, ""),
    "frozen images": ("clip", SIZES, "clip.visual."),
    "frozen texts": ("siglip", SIZES, "clip.t"),
}
for _loss in ("clip", "siglip"):
    CASES[f"{_loss}, many chunks"] = (_loss, {"micro_batch_size": 1}, "")
    for _keep in (0, 1, 9):
        CASES[f"{_loss}, {_keep} kept"] = (_loss, {**SIZES, "keep_chunks": _keep}, "")
    for _name, _rule in RULES.items():
        if _loss == "clip" or not _rule.smoothing:
            CASES[f"{_loss}, {_name}"] = (_loss, {**SIZES, "rule": _rule}, "")


def frozen(towers: Any, beginning: str) -> Any:
    for name, parameter in towers.named_parameters():
        if beginning and name.startswith(beginning):
            parameter.requires_grad_(False)
    return towers


def share(world: World) -> slice:
    size = PAIRS // world.size
    return slice(world.rank * size, (world.rank + 1) * size)


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Images and tokens: one to 31 of them, more on each later rank, and padding."""
    images, tokens = batch(PAIRS)
    return images, tokens * (torch.arange(32) <= torch.arange(0, 2 * PAIRS, 2)[:, None])


def drop_padding(concepts: torch.Tensor) -> torch.Tensor:
    ordered = concepts.sort(1, descending=True).values
    return ordered[:, : int((ordered > 0).sum(1).max())]


def _steps(world: World) -> dict[str, Any]:
    """This rank's part of every case, and of what else needs other processes."""
    results: dict[str, Any] = {}
    own = share(world)
    for name, (loss, settings, beginning) in CASES.items():
        towers = frozen(build(), beginning)
        if world.rank:  # other weights, which the main rank's must replace
            torch.nn.init.normal_(towers.clip.text_projection)
        step = CachedStep(towers, loss, world, **settings)
        whole = labels(PAIRS)
        # a rank whose pairs have fewer concepts pads less
        concepts = drop_padding(whole.concepts[own]) if world.rank else whole.concepts[own]
        about = Labels(whole.captions[own], whole.images[own], concepts)
        with watched() as sent:
            value = step(*[side[own] for side in pairs()], about)
        results[name] = {"loss": value, "gradients": gradients(towers), "sent": sent}
    towers = adapted()
    if world.rank:
        for name, parameter in towers.named_parameters():
            if ".parametrizations." in name:
                torch.nn.init.normal_(parameter)
    step = CachedStep(towers, "clip", world, micro_batch_size=3)
    step(*[side[own] for side in pairs()])
    results["adapters"] = gradients(towers)
    towers = build(RESNET, freeze_batch_norm=False)
    step = CachedStep(towers, "clip", world, micro_batch_size=4)
    step(*[side[own] for side in pairs()])
    results["live"] = {name: buffer.clone() for name, buffer in towers.named_buffers()}
    values = torch.tensor([1.0, -100.0, 99.0, 3.0]) + world.rank
    results["logsumexp"] = distributed.all_reduce_logsumexp(values, torch.tensor(100.0))
    return results


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    return run(_steps, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CASES)
def test_processes_equal_one_big_batch(ranks: list[dict[str, Any]], name: str) -> None:
    loss, settings, beginning = CASES[name]
    reference = frozen(build(), beginning)
    rule = settings.get("rule")
    targets = None if rule is None else dense_targets(rule, labels(PAIRS), loss).float()
    wanted = plain_step(reference, loss, *pairs(), targets=targets)
    results = [rank[name] for rank in ranks]
    for result in results:
        torch.testing.assert_close(result["loss"], wanted)
        assert worst_error(result["gradients"], gradients(reference)) < 1e-5
        assert result["loss"] == results[0]["loss"]
        assert all(g.equal(results[0]["gradients"][n]) for n, g in result["gradients"].items())


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_what_is_sent(ranks: list[dict[str, Any]], loss: str) -> None:
    """Many chunks, one reduction of the gradients: each element once, and little besides."""
    for result in (rank[f"{loss}, many chunks"] for rank in ranks):
        trained = sum(4 * g.numel() for g in result["gradients"].values())
        features = 4 * PAIRS * 24  # G x D floats
        # for InfoNCE a value per column; the loss; the gradients, at once
        small = [8 * PAIRS, 8] if loss == "clip" else [8]
        sizes = {n: [b for name, b in result["sent"] if name == n] for n in COLLECTIVES}
        assert sizes == {
            "all_gather_into_tensor": [features],  # the texts
            "reduce_scatter_tensor": [features],  # their gradients
            "all_reduce": [*small, trained],
            "broadcast": [],
        }


def test_live_statistics_are_shared(ranks: list[dict[str, Any]]) -> None:
    """Each rank normalises its own chunks; afterwards all hold the mean of the statistics."""
    alone = []
    for rank in range(len(ranks)):
        towers = build(RESNET, freeze_batch_norm=False)
        own = share(World(rank, len(ranks), torch.device("cpu")))
        with torch.no_grad():
            for part in pairs()[0][own].split(4):
                towers.embed_images(part)
        alone.append(dict(towers.named_buffers()))
    for name in (n for n in alone[0] if n.endswith(("running_mean", "running_var"))):
        mean = torch.stack([buffers[name] for buffers in alone]).mean(0)
        for result in ranks:
            torch.testing.assert_close(result["live"][name], mean, msg=name)


def test_all_reduce_logsumexp(ranks: list[dict[str, Any]]) -> None:
    """Values that float32 could not hold as exponentials."""
    values = torch.tensor([1.0, -100.0, 99.0, 3.0])
    wanted = torch.stack([values + rank for rank in range(len(ranks))]).logsumexp(0)
    for result in ranks:
        torch.testing.assert_close(result["logsumexp"], wanted)


def test_adapters(ranks: list[dict[str, Any]]) -> None:
    """Only they have gradients, those of one big batch."""
    reference = adapted()
    plain_step(reference, "clip", *pairs())
    for result in ranks:
        assert worst_error(result["adapters"], gradients(reference)) < 1e-5
        names = {n.removeprefix("clip.") for n in result["adapters"]}
        assert all(".parametrizations." in n for n in names - {"logit_scale"})
