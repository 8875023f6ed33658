"""Features of many images and texts. N images or texts, D embedding size."""

from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import distributed
from .chunks import autocast
from .data import Pairs, loader
from .errors import InputError, Stopped, WorkError
from .model import Clip


@torch.inference_mode()
def embed_pairs(
    clip: Clip,
    pairs: Pairs,
    world: distributed.World,
    *,
    batch_size: int,
    workers: int,
    precision: str,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, Tensor]:
    """Embed every pair once; the ranks share the work in contiguous blocks, without padding.

    Args:
        clip: the model.
        pairs: N of them.
        world: the ranks.
        batch_size: pairs at once.
        workers: loader processes per rank.
        precision: see `TrainConfig`.
        stop: asked after each batch whether to leave it at that.

    Returns:
        Image and text features of the whole set in its order, (N, D) float32 each, on every rank.

    Raises:
        Stopped: `stop` said so, on whichever rank; raised on all.
        InputError, WorkError: a pair can't be read, on whichever rank; raised on all.
    """
    clip.towers.eval()
    blocks = np.array_split(np.arange(len(pairs)), world.size)
    places = [(0, int(index)) for index in blocks[world.rank]]
    batches = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
    images, texts = [], []
    failure: InputError | WorkError | Stopped | None = None
    bar = tqdm(total=len(pairs), unit="pair", desc="embed", leave=False, disable=_silent(world))
    pin = world.device.type == "cuda"
    with bar:
        try:
            for loaded in loader(pairs, batches, workers=workers, pin=pin):
                moved = [loaded.batch[name].to(world.device) for name in ("images", "tokens")]
                with autocast(world.device, precision):
                    image_features, text_features, _ = clip.towers(*moved)
                images.append(image_features)
                texts.append(text_features)
                bar.update(len(image_features) * world.size)
                if stop():
                    raise Stopped("stopped by a signal")
        except (InputError, WorkError, Stopped) as error:
            failure = error  # the others wait at the next line for this rank
    distributed.raise_together(failure, world.device)
    width = clip.description["definition"]["embed_dim"]
    empty = torch.empty(0, width, device=world.device)  # a rank may have no pair
    image_rows = distributed.gather_ragged(torch.cat([empty, *images]))
    text_rows = distributed.gather_ragged(torch.cat([empty, *texts]))
    assert len(image_rows) == len(text_rows) == len(pairs), "every pair once"
    return image_rows, text_rows


@torch.inference_mode()
def embed_images(
    clip: Clip, images: Iterable[Tensor], device: torch.device, *, batch_size: int, precision: str
) -> Tensor:
    """Features of preprocessed images, each (3, H, W) uint8: (N, D) float32."""
    return _embed_batches(clip.towers.embed_images, images, device, batch_size, precision)


@torch.inference_mode()
def embed_texts(
    clip: Clip, texts: list[str], device: torch.device, *, batch_size: int, precision: str
) -> Tensor:
    """Features of texts: (N, D) float32."""
    tokens = (clip.tokenizer([text])[0] for text in texts)
    return _embed_batches(clip.towers.embed_texts, tokens, device, batch_size, precision)


def _embed_batches(
    embed: Callable[[Tensor], Tensor],
    rows: Iterable[Tensor],
    device: torch.device,
    batch_size: int,
    precision: str,
) -> Tensor:
    rows, blocks = iter(rows), []
    while block := list(islice(rows, batch_size)):
        with autocast(device, precision):
            blocks.append(embed(torch.stack(block).to(device)))
    return torch.cat(blocks)


def _silent(world: distributed.World) -> bool | None:
    """No bar but on the main rank's terminal (None lets tqdm look for one)."""
    return None if world.main else True
