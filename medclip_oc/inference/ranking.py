"""Candidates ranked for images. N images, M candidates, D embedding size."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .prompts import NONE

FIELDS = ("image", "rank", "text", "cosine", "probability", "margin")
_DIGITS = 6
"""Behind the point; float32 features have no more."""


class Scores(NamedTuple):
    """Of N images over M candidates."""

    cosines: Tensor
    """(N, M) float32."""
    probabilities: Tensor
    """(N, M) float32: the softmax over the candidates at the model's temperature."""


class Ranking:
    """Ranks the same candidates for any number of images.

    Args:
        names: of the M texts.
        features: (M, D), normalised.
        scale: the model's inverse temperature.
        threshold: cosine of a further candidate, NONE, which stands before texts of equal cosine.
            None: there is no such candidate.

    Attributes:
        names: of the candidates: the texts, after NONE if it is one.
    """

    def __init__(
        self, names: Sequence[str], features: Tensor, scale: float, threshold: float | None = None
    ) -> None:
        self.features, self.scale, self.threshold = features, scale, threshold
        self.names = [*names] if threshold is None else [NONE, *names]

    def scores(self, images: Tensor) -> Scores:
        """Scores of images (N, D), normalised; on the CPU."""
        cosines = (images @ self.features.T).float().cpu()
        if self.threshold is not None:
            cosines = torch.nn.functional.pad(cosines, (1, 0), value=self.threshold)
        return Scores(cosines, (self.scale * cosines).softmax(dim=1))

    def rows(
        self, images: Sequence[str], scores: Scores, top: int | None = None
    ) -> list[dict[str, Any]]:
        """Every image's candidates, best first; equal ones keep the order they came in.

        Args:
            images: N names.
            scores: of these images.
            top: rows per image. None: all.

        Returns:
            Rows with the keys FIELDS: rank from 1; cosine; probability; margin, the cosine less the
            best cosine of any other candidate (only the first's is positive; 0 where there is one).
        """
        ordered, places = scores.cosines.sort(dim=1, descending=True, stable=True)
        columns = (places, ordered, scores.probabilities.gather(1, places))
        rows = []
        for image, order, cosines, shares in zip(
            images, *(column.tolist() for column in columns), strict=True
        ):
            rivals = [cosines[min(1, len(cosines) - 1)], cosines[0]]
            for r, m in enumerate(order[:top]):
                cosine = round(cosines[r], _DIGITS)
                margin = round(cosine - round(rivals[r > 0], _DIGITS), _DIGITS)
                row = (image, r + 1, self.names[m], cosine, float(f"{shares[r]:.6g}"), margin)
                rows.append(dict(zip(FIELDS, row, strict=True)))
        return rows
