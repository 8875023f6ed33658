"""Features of images and texts that a user names, in batches.

Images are read and decoded by loader processes while the model works; a batch of pixels at a time
is in memory, whatever their number. B images of a batch, M candidates, D embedding size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config.inference import ModelChoice
from ..config.schema import ModelConfig
from ..data.augment import Preprocess
from ..data.captions import Captions
from ..errors import BadImage, InputError, WorkError
from ..imaging.jpeg import Picture
from ..models import factory
from ..models.clip import Clip
from ..models.factory import trained_clip
from ..runtime import distributed
from ..runtime.precision import autocast, check_finite
from ..runtime.workers import cores
from .image_inputs import ImageSet
from .prompts import Candidate

_MOST_WORKERS = 8
SAME = 0.9995
"""Cosine of the features that one model gives to one input, in any precision."""


class EmbeddedImages(NamedTuple):
    """A batch of images."""

    positions: list[int]
    """Of the images that were embedded."""
    features: Tensor
    """(len(positions), D) float32, normalised."""
    bad: list[tuple[int, str]]
    """Position of each image that couldn't be read, and why."""


@dataclass(frozen=True)
class Embedder:
    """A model at work.

    Attributes:
        clip: the model, on its device.
        device: that device.
        batch_size: images or texts embedded at once.
        workers: loader processes. None: one per core, at most 8.
        precision: "fp32", "bf16" or "fp16".
    """

    clip: Clip
    device: torch.device
    batch_size: int = 64
    workers: int | None = None
    precision: str = "fp32"

    @property
    def width(self) -> int:
        """D."""
        return int(self.clip.description["definition"]["embed_dim"])

    def images(self, images: ImageSet) -> Iterator[EmbeddedImages]:
        """Features of images, batch by batch, in their order.

        Raises:
            InputError, WorkError: a shard is damaged, or gone; a worker died; features that are not
                finite. An image that can't be decoded stands in its batch.
        """
        batches: DataLoader[Any] = DataLoader(
            _Pixels(images, self.clip),
            self.batch_size,
            num_workers=self.processes(len(images)),
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
        )
        try:
            for positions, pixels, errors in batches:
                bad = [(n, str(error)) for n, error in errors if isinstance(error, BadImage)]
                for _, error in errors:
                    if not isinstance(error, BadImage):
                        raise error
                features = torch.empty(0, self.width, device=self.device)
                if positions:
                    features = self.forward(self.clip.towers.embed_images, pixels)  # (B, D)
                check_finite(features, "image")
                yield EmbeddedImages(positions, features, bad)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise WorkError("a loader process died; out of memory? Try fewer --workers") from None

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
            "text": self.texts(["a radiograph of the chest"])[0],
            "image": self.forward(self.clip.towers.embed_images, ramp)[0],
        }
        return {name: [round(x, 7) for x in row.tolist()] for name, row in features.items()}

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features of texts: (M, D), normalised."""
        return self.candidates([Candidate(text, (text,)) for text in texts])[0]

    def candidates(
        self, candidates: Sequence[Candidate], progress: Callable[[int], None] | None = None
    ) -> tuple[Tensor, list[str]]:
        """Features of candidates, each prompt embedded once.

        open_clip's `build_zero_shot_classifier` wants as many prompts for every class, embeds equal
        ones again, and doesn't tell which were cut.

        Args:
            candidates: M of them.
            progress: told of how many prompts more are done.

        Returns:
            (M, D), normalised; and the prompts that the context cut.

        Raises:
            WorkError: features that are not finite.
        """
        owners: dict[str, list[int]] = {}
        for m, candidate in enumerate(candidates):
            for prompt in candidate.prompts:
                owners.setdefault(prompt, []).append(m)
        captions = Captions(self.clip.tokenizer)
        prompts, cut = list(owners), list[str]()
        sums = torch.zeros(len(candidates), self.width, device=self.device)  # (M, D)
        for first in range(0, len(prompts), self.batch_size):
            batch = prompts[first : first + self.batch_size]
            tokens, is_cut = zip(*(captions.tokens(prompt, []) for prompt in batch), strict=True)
            cut += [prompt for prompt, too_long in zip(batch, is_cut, strict=True) if too_long]
            features = self.forward(self.clip.towers.embed_texts, torch.stack(tokens))  # (B, D)
            links = [(row, m) for row, prompt in enumerate(batch) for m in owners[prompt]]
            rows, own = torch.tensor(links, device=self.device).T
            sums.index_add_(0, own, features[rows])
            if progress:
                progress(len(batch))
        check_finite(sums, "text")
        return torch.nn.functional.normalize(sums, dim=1), cut

    @torch.inference_mode()
    def forward(self, embed: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """One batch through one tower: (B, D) float32, normalised."""
        with autocast(self.device, self.precision):
            return embed(batch.to(self.device, non_blocking=True))


def open_embedder(choice: ModelChoice) -> Embedder:
    """The model that a command was given, on its device.

    Raises:
        InputError, WorkError: as `trained_clip` and `factory.build`.
    """
    device = distributed.device_of(choice.device)
    distributed.check_precision(choice.precision, device)
    if choice.checkpoint is not None:
        clip, _ = trained_clip(choice.checkpoint, device)
    else:
        assert choice.model is not None
        try:
            clip = factory.build(ModelConfig(arch=choice.model, pretrained=choice.pretrained))
        except InputError as error:  # in the words of this command
            message = str(error).replace("model.pretrained", "--pretrained")
            raise InputError(message.replace("model.arch", "--model")) from error
        clip.towers.to(device).eval()
    return Embedder(clip, device, choice.batch_size, choice.workers, choice.precision)


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


def _collate(samples: list[tuple[int, Any]]) -> tuple[list[int], Tensor | None, list[Any]]:
    """Positions and pixels (B, 3, H, W) of what was read; position and error of what wasn't."""
    good = [(position, pixels) for position, pixels in samples if isinstance(pixels, Tensor)]
    errors = [(n, error) for n, error in samples if not isinstance(error, Tensor)]
    pixels = torch.stack([each for _, each in good]) if good else None
    return [position for position, _ in good], pixels, errors
