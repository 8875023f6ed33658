"""Candidate captions ranked for images. N images, M texts."""

from typing import Any

from torch import Tensor

FIELDS = ("image", "rank", "text", "cosine", "probability", "margin")


def rank_texts(
    images: list[str],
    texts: list[str],
    image_features: Tensor,
    text_features: Tensor,
    scale: float,
    top: int | None = None,
) -> list[dict[str, Any]]:
    """Every image's texts, best first; equal scores keep the order the texts came in.

    Args:
        images: N names.
        texts: M candidates.
        image_features: (N, D), normalised.
        text_features: (M, D), normalised.
        scale: the model's inverse temperature.
        top: rows per image. None: all.

    Returns:
        Rows with the keys FIELDS: rank from 1; cosine; probability, the softmax over the M texts at
        the model's temperature; margin, the cosine less the best cosine of any other text (only the
        first is positive; 0 where there is one text).
    """
    cosines = (image_features @ text_features.T).cpu()  # (N, M)
    probabilities = (scale * cosines).softmax(dim=1)  # (N, M)
    scores, places = cosines.sort(dim=1, descending=True, stable=True)
    rows = []
    for n, image in enumerate(images):
        best = scores[n, 0]
        rival = scores[n, 1] if len(texts) > 1 else best
        for r, m in enumerate(places[n, :top].tolist()):
            values = (
                cosines[n, m],
                probabilities[n, m],
                scores[n, r] - (rival if r == 0 else best),
            )
            cosine, probability, margin = (float(value) for value in values)
            row = (image, r + 1, texts[m], cosine, probability, margin)
            rows.append(dict(zip(FIELDS, row, strict=True)))
    return rows
