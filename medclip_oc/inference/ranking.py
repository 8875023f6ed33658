"""Candidates ranked for images, or each judged by itself. N images, M candidates, D embedding
size.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from ..config.fields import shorten
from ..errors import InputError
from ..reporting.output import RowWriter
from ..runtime.progress import Progress, print_line
from .embedder import Embedder
from .image_inputs import ImageSet
from .prompt_sets import PromptClass
from .prompts import NONE

FIELDS = ("image", "rank", "text", "cosine", "probability", "margin")
_DIGITS = 6  # behind the point; float32 features have no more


@dataclass(frozen=True)
class Ranking:
    """Ranks the same candidates for any number of images."""

    names: Sequence[str]  # of the M candidates
    features: Tensor  # (M, D), normalised; without the first where there is a threshold
    scale: float  # the model's inverse temperature
    threshold: float | None  # cosine of the first candidate, which has no text
    cut: Sequence[str] = ()  # texts that the context cut
    fields: ClassVar = FIELDS

    def scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines of images (N, D), and the softmax over the candidates at the temperature: (N, M)
        float32 both, on the CPU.
        """
        cosines = (images @ self.features.T).float().cpu()  # (N, M)
        if self.threshold is not None:
            cosines = pad(cosines, (1, 0), value=self.threshold)
        return cosines, (self.scale * cosines).softmax(dim=1)

    def rows(
        self, images: Sequence[str], scores: tuple[Tensor, Tensor], top: int | None = None
    ) -> list[dict[str, Any]]:
        """The `top` candidates of each of N images, best first; equal ones as they came: rows with
        the keys FIELDS. Rank from 1; cosine; probability; margin, the cosine less the best cosine
        of any other candidate (only the first's is positive; 0 where there is one).
        """
        cosines, probabilities = scores
        sorted_cosines, order = cosines.sort(dim=1, descending=True, stable=True)  # (N, M)
        columns = (order, sorted_cosines, probabilities.gather(1, order))
        lists, rows = (column.tolist() for column in columns), []
        for image, indices, values, shares in zip(images, *lists, strict=True):
            rounded = [round(value, _DIGITS) for value in values]
            for r, m in enumerate(indices[:top]):
                best_other = rounded[0 if r else min(1, len(rounded) - 1)]
                margin = round(rounded[r] - best_other, _DIGITS)
                row = (image, r + 1, self.names[m], rounded[r], float(f"{shares[r]:.6g}"), margin)
                rows.append(dict(zip(FIELDS, row, strict=True)))
        return rows


@dataclass(frozen=True)
class Judging:
    """Judges M findings for any number of images, each by its own pair of texts (Tiu et al. 2022):
    the softmax over the two cosines at the temperature.
    """

    names: Sequence[str]  # of the M findings
    sides: Tensor  # (2, M, D), normalised: what says that it is there, and that it isn't
    scale: float  # the model's inverse temperature
    cut: Sequence[str] = ()  # texts that the context cut
    fields: ClassVar = ("image", "finding", "probability", "cosine_positive", "cosine_negative")

    def scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of images (N, D) the cosines (2, N, M), and the probabilities of the findings (N, M);
        float32 both, on the CPU.
        """
        cosines = (images @ self.sides.mT).float().cpu()  # (2, N, M)
        return cosines, (self.scale * cosines).softmax(dim=0)[0]

    def rows(
        self, images: Sequence[str], scores: tuple[Tensor, Tensor], top: int | None = None
    ) -> list[dict[str, Any]]:
        """A row for each image and finding, as they came; `top` is for a `Ranking` alone."""
        (positive, negative), probabilities = scores
        columns = (x.double().numpy().round(_DIGITS).ravel().tolist() for x in (positive, negative))
        shares = (float(f"{share:.6g}") for share in probabilities.ravel().tolist())
        named = itertools.product(images, self.names)
        rows = zip(named, shares, *columns, strict=True)
        return [dict(zip(self.fields, (*pair, *values), strict=True)) for pair, *values in rows]


def embed_candidates(
    embedder: Embedder,
    candidates: Sequence[PromptClass],
    threshold: float | None = None,
    *,
    multi_label: bool = False,
    quiet: bool = False,
) -> Ranking | Judging:
    """The candidates, each text embedded once; a warning for each that the context cuts.

    open_clip's `build_zero_shot_classifier` wants as many prompts for every class, embeds equal
    ones again, and doesn't tell which were cut.
    """
    texts_of = [each.positive for each in candidates]
    texts_of += [each.negative for each in candidates] if multi_label else []
    prompts = list(dict.fromkeys(prompt for texts in texts_of for prompt in texts))
    shown = len(prompts) > embedder.batch_size and not quiet
    with Progress(len(prompts), "texts", "embed", shown=shown) as progress:
        features, cut = embedder.texts(prompts, progress.update)
    lost = f"cut at {embedder.clip.description['context_length']} tokens, the rest doesn't count"
    for prompt in () if quiet else cut:
        print_line(f"warning: {lost}: {shorten(prompt)}")
    row_of = {prompt: row for row, prompt in enumerate(prompts)}
    parts = [features[[row_of[prompt] for prompt in texts]].mean(0) for texts in texts_of]
    means = normalize(torch.stack(parts), dim=1)  # (M, D), or (2M, D)
    scale = embedder.clip.towers.inverse_temperature().item()
    names = [candidate.name for candidate in candidates]
    if multi_label:
        return Judging(names, means.unflatten(0, (2, -1)), scale, cut)
    return Ranking([NONE] * (threshold is not None) + names, means, scale, threshold, cut)


def write_rows(
    embedder: Embedder,
    images: ImageSet,
    ranking: Ranking | Judging,
    writer: RowWriter | None,
    *,
    top: int | None = None,
    scores: Sequence[np.ndarray] = (),
    explain: Callable[[str, bytes, list[int]], None] | None = None,
) -> int:
    """Rank the candidates for every image, and write the rows, if there is a writer, batch by
    batch. Probabilities go into each of the `scores` (N, M) too; each image's name, bytes and
    candidates, best first, to `explain`. Returns how many images couldn't be read; each is named on
    standard error. InputError: none of them can be read.
    """
    total, unreadable = len(images), 0
    # on a terminal the rows are there to be seen
    shown = total > embedder.batch_size and not sys.stdout.isatty()
    with Progress(total, "images", "embed", shown=shown) as progress:
        for positions, features, bad in embedder.images(images):
            for position, reason in bad.items():
                line = f"{images.name(position)}: {reason}"
                if total == 1:
                    raise InputError(line)
                print_line(f"warning: {line}")
            scored = ranking.scores(features)
            if writer is not None:
                writer.write(ranking.rows([images.name(n) for n in positions], scored, top))
            if explain is not None:
                order = scored[0].argsort(dim=1, descending=True, stable=True)
                for n, best in zip(positions, order.tolist(), strict=True):
                    explain(images.name(n), images.read(n), best)
            for table in scores:
                table[positions] = scored[1].numpy()
            unreadable += len(bad)
            progress.update(len(positions) + len(bad))
    if writer is not None:
        writer.close()
    if unreadable == total:
        raise InputError(f"none of the {total:,} images can be read")
    return unreadable
