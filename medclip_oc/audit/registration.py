"""How similar two images are once one is laid over the other.

Plain correlation of thumbnails finds different chest films similar and a slightly cropped copy
different. So the one image is first moved and stretched, along each axis, to lie on the other
(Lucas and Kanade 1981, in the compositional form of Baker and Matthews 2004), brightness and
contrast left free; then they are correlated where they overlap. P pairs, n pixels a side.
"""

import numpy as np

_COARSE_SIDE, _COARSE_STEPS, _FINE_STEPS = 16, 6, 4  # pixels, steps on them, steps on all pixels
_PIECE = 128  # pairs at once, for the cache
_MAX_STRETCH, _MAX_SHIFT = 1.25, 0.2  # shift in half sides: a tenth of the image
_MAX_STEP = 0.1


def aligned_correlation(thumbnails: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Correlation of two thumbnails of grey images, each (P, n, n) uint8 with n a multiple of 16:
    the best of as they are, and each laid over the other. (P,) float32, at most 1; 0 where an image
    is of one value.
    """
    best = np.zeros(len(thumbnails[0]), np.float32)
    for begin in range(0, len(best), _PIECE):
        a, b = (each[begin : begin + _PIECE].astype(np.float32) for each in thumbnails)
        # as they are: where nearly all is dark, the search may wander off from the right place
        ways = (_correlation(a, b, np.ones_like(a)), _over(a, b), _over(b, a))
        best[begin : begin + _PIECE] = np.max(ways, axis=0)
    return best


def _over(still: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Correlation once `moved` is laid over `still`: (P, n, n) twice -> (P,)."""
    place = np.tile(np.array([1.0, 0.0]), (len(still), 2, 1))  # down and across; stretch and shift
    for side, steps in ((_COARSE_SIDE, _COARSE_STEPS), (still.shape[-1], _FINE_STEPS)):
        squares = (-1, side, still.shape[-1] // side, side, still.shape[-1] // side)
        fixed, moving = (each.reshape(squares).mean((2, 4)) for each in (still, moved))
        for _ in range(steps):
            place = _step(fixed, moving, place)
    return _correlation(fixed, *_warped(moving, place))


def _warped(images: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images (P, n, n) seen from a place (P, 2, 2), and where they have pixels, as 0 or 1."""
    side = images.shape[-1]
    position = place[..., :1] * _grid(side) + place[..., 1:]  # (P, 2, n), -1 to 1 over the image
    pixel = (position + 1) * side / 2 - 0.5
    inside = (pixel > -0.51) & (pixel < side - 0.49)
    distance = np.abs(np.clip(pixel, 0, side - 1)[..., None] - np.arange(side))
    weights = np.maximum(0, 1 - distance).astype(np.float32)  # (P, 2, n, n): linear interpolation
    warped = weights[:, 0] @ images @ weights[:, 1].transpose(0, 2, 1)
    return warped, (inside[:, 0, :, None] & inside[:, 1, None, :]).astype(np.float32)


def _grid(side: int) -> np.ndarray:
    return (np.arange(side) + 0.5) * 2 / side - 1


def _step(fixed: np.ndarray, moving: np.ndarray, place: np.ndarray) -> np.ndarray:
    """One step of Gauss and Newton towards the place with the least squared difference."""
    warped, inside = _warped(moving, place)
    grid = _grid(warped.shape[-1]).astype(np.float32)
    down, across = np.gradient(warped, 2 / len(grid), axis=(1, 2))
    # by stretch and shift down, stretch and shift across, contrast, brightness
    slopes = (down * grid[:, None], down, across * grid, across, warped, np.ones_like(warped))
    slope = np.stack([each * inside for each in slopes], 1).reshape(len(warped), len(slopes), -1)
    target = (fixed * inside).reshape(len(fixed), -1, 1)
    square = (slope @ slope.transpose(0, 2, 1)).astype(np.float64)  # (P, 6, 6)
    damping = 1e-3 * np.diagonal(square, axis1=1, axis2=2) + 1e-6
    square += damping[:, :, None] * np.eye(len(slopes))
    solved = np.linalg.solve(square, (slope @ target).astype(np.float64))[..., 0]  # (P, 6)
    contrast = np.where(np.abs(solved[:, 4:5]) < 0.1, 0.1, solved[:, 4:5])
    change = np.clip(solved[:, :4] / contrast, -_MAX_STEP, _MAX_STEP).reshape(-1, 2, 2)
    stretch, shift = place[..., 0], place[..., 1]  # each (P, 2): down, across
    new = np.clip(stretch * (1 + change[..., 0]), 1 / _MAX_STRETCH, _MAX_STRETCH)
    return np.stack([new, np.clip(stretch * change[..., 1] + shift, -_MAX_SHIFT, _MAX_SHIFT)], -1)


def _correlation(one: np.ndarray, other: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Pearson's, over the pixels inside: (P, n, n) three times -> (P,)."""
    pixels = np.maximum(inside.sum((1, 2), keepdims=True), 1)
    one, other = (
        (each - (each * inside).sum((1, 2), keepdims=True) / pixels) * inside
        for each in (one, other)
    )
    lengths = [np.sqrt((each**2).sum((1, 2))) for each in (one, other)]
    correlation = (one * other).sum((1, 2)) / np.maximum(lengths[0] * lengths[1], 1e-6)
    return np.where(np.minimum(*lengths) > 1e-3, correlation, 0).astype(np.float32)
