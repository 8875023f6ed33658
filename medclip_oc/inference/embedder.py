"""Features of images and texts that a user names, in batches.

Images are read and decoded by loader processes while the model works; a batch of pixels at a time
is in memory, whatever their number. B images of a batch, M texts, D embedding size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config.evaluation import EvaluateConfig
from ..config.inference import ModelChoice
from ..data.augment import Preprocess
from ..data.dataset import Captions
from ..errors import BadImage, InputError, WorkError
from ..imaging.jpeg import Picture
from ..models import averaging, factory
from ..models.clip import SORTED, Clip
from ..runtime import devices, shutdown
from ..runtime.devices import autocast, check_finite
from ..runtime.progress import Progress
from ..runtime.workers import cores
from .image_inputs import ImageSet

_MOST_WORKERS = 8
_ROWS = 4096  # of features that were read, at once
SAME = 0.9995  # cosine of the features that one model gives to one input, in any precision


@dataclass(frozen=True)
class Embedder:
    """A model at work."""

    clip: Clip  # on its device
    device: torch.device
    batch_size: int = 64  # images or texts embedded at once
    workers: int | None = None  # loader processes. None: one per core, at most 8
    precision: str = "fp32"  # or "bf16", "fp16"

    @property
    def width(self) -> int:
        """D."""
        return int(self.clip.description["definition"]["embed_dim"])

    def images(self, images: ImageSet) -> Iterator[tuple[list[int], Tensor, dict[int, str]]]:
        """Features of images, batch by batch, in their order: positions of those embedded; their
        features (B, D) float32, normalised; why the others, by position, can't be decoded.
        InputError, WorkError: a shard is damaged, or gone; a worker died; features that were read
        are of another model; see `forward`.
        """
        if (made := images.features) is not None:
            if made.shape[1] != self.width:
                widths = f"features of {made.shape[1]} numbers, where the model's have {self.width}"
                raise InputError(f"--features-in: {widths}: they are of another model")
            if not averaging.is_of_size(self.clip.towers.clip.state_dict(), images.weights):
                raise InputError("--features-in: made by other weights than those of this model")
            for rows in torch.arange(len(images)).split(_ROWS):
                yield rows.tolist(), made[rows].to(self.device), {}
            return
        batches: DataLoader[Any] = DataLoader(
            _Pixels(images, self.clip),
            self.batch_size,
            num_workers=self.processes(len(images)),
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # of its own, as in `load_batches`
            worker_init_fn=shutdown.outlive_signals,
        )
        try:
            for positions, pixels, errors in batches:
                for error in errors.values():
                    if not isinstance(error, BadImage):
                        raise error
                features = torch.empty(0, self.width, device=self.device)
                if positions:
                    features = self.forward("image", pixels)  # (B, D)
                yield positions, features, {n: str(error) for n, error in errors.items()}
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise WorkError("a loader process died; out of memory? Try fewer --workers") from None

    def every_image(self, images: ImageSet, *, shown: bool = False) -> Tensor:
        """(N, D) of all images; InputError: names the first that can't be decoded. `shown`: with a
        bar of how far it is.
        """
        parts = [torch.empty(0, self.width, device=self.device)]
        with Progress(len(images), "images", "embed", shown=shown) as progress:
            for positions, features, bad in self.images(images):
                for position, reason in bad.items():
                    raise InputError(f"{images.name(position)}: {reason}")
                parts.append(features)
                progress.update(len(positions))
        return torch.cat(parts)

    def processes(self, images: int) -> int:
        """Loader processes for so many images; none where one batch holds them all."""
        if images <= self.batch_size:
            return 0
        return min(cores(), _MOST_WORKERS) if self.workers is None else self.workers

    def probes(self) -> dict[str, list[float]]:
        """Features of a fixed text and a fixed image: what tells a model from another.

        On another machine, or in half precision, their cosines with these stay above SAME.
        """
        height, width = self.clip.image_size
        ramp = torch.linspace(0, 255, width).to(torch.uint8).expand(1, 3, height, width)
        features = {
            "text": self.texts(["a radiograph of the chest"])[0][0],
            "image": self.forward("image", ramp)[0],
        }
        return {name: [round(x, 7) for x in row.tolist()] for name, row in features.items()}

    def texts(
        self, texts: Sequence[str], progress: Callable[[int], object] | None = None
    ) -> tuple[Tensor, list[str]]:
        """Features of M texts, (M, D) float32, normalised; and the texts that the context cut.
        `progress` is told of how many more are done.
        """
        captions, parts, cut = Captions(self.clip.tokenizer), list[Tensor](), list[str]()
        for first in range(0, len(texts), SORTED):
            block = texts[first : first + SORTED]
            tokens, is_cut = zip(*(captions.tokens(text, []) for text in block), strict=True)
            cut += [text for text, too_long in zip(block, is_cut, strict=True) if too_long]
            parts.append(self.tokens(torch.stack(tokens), progress))  # (B, D)
        return torch.cat(parts), cut

    def tokens(self, tokens: Tensor, progress: Callable[[int], object] | None = None) -> Tensor:
        """The same of their tokens, (M, L) int64; those of about one length in a batch."""
        order, batches = self.clip.towers.by_length(tokens, self.batch_size)
        parts = list[Tensor]()
        for batch in batches:
            parts.append(self.forward("text", batch))  # (B, D)
            if progress:
                progress(len(batch))
        return torch.cat(parts)[order.argsort()]

    @torch.inference_mode()
    def forward(self, side: str, batch: Tensor) -> Tensor:
        """One batch of an "image" or "text" side: (B, D) float32, normalised; WorkError: features
        that are not finite.
        """
        towers = self.clip.towers
        embed = towers.embed_images if side == "image" else towers.embed_texts
        with autocast(self.device, self.precision)():
            features = embed(batch.to(self.device, non_blocking=True))
        check_finite(features, side)
        return features


def open_embedder(choice: ModelChoice | EvaluateConfig) -> Embedder:
    """The model that a command was given, on its device; InputError, WorkError: see `factory`."""
    device = devices.device_of(choice.device)
    devices.check_precision(choice.precision, device)
    if choice.checkpoint is not None:
        clip = factory.load(choice.checkpoint)
    else:
        assert choice.model is not None
        clip = factory.named(choice.model, choice.pretrained)
    return Embedder(clip.on(device), device, choice.batch_size, choice.workers, choice.precision)


class _Pixels(Dataset[tuple[int, Any]]):
    """(position, (3, H, W) uint8); in place of the pixels a BadImage, InputError or WorkError."""

    def __init__(self, images: ImageSet, clip: Clip) -> None:
        self.images, self.preprocess = images, Preprocess(clip)
        self.rng = np.random.default_rng(0)  # that a transform is given, and this one doesn't use

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        try:
            picture = Picture(self.images.read(position), exact=True)
            return position, self.preprocess(picture, self.rng)
        except (InputError, WorkError) as error:
            return position, error
        except OSError as error:  # of a shard: its disk failed
            return position, WorkError(f"{self.images.name(position)}: {error.strerror}")


def _collate(
    samples: list[tuple[int, Any]],
) -> tuple[list[int], Tensor | None, dict[int, Exception]]:
    """Positions and pixels (B, 3, H, W) of what was read; errors of what wasn't, by position."""
    good = {n: pixels for n, pixels in samples if isinstance(pixels, Tensor)}
    errors = {n: error for n, error in samples if not isinstance(error, Tensor)}
    return list(good), torch.stack(list(good.values())) if good else None, errors
