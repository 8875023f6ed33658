"""Pictures of phantoms: made-up organs and lesions, as made-up scanners might show them.

Coordinates: x to the right, y down; the shorter side of the picture spans -1..1. Radiological
convention: the patient's left is on the right of the picture (x > 0), in every modality.
Shapes: H, W the picture's height and width; a mask is a float array (H, W) in 0..1.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

THINGS = ("air", "body", "bone", "organ", "lung", "cavity", "tissue", "fluid", "pool", "stone")
LEVELS = {  # grey level of each thing; of an X-ray: what it adds to the shadow
    modality: dict(zip(THINGS, levels, strict=True))
    for modality, levels in {
        "ct": (0.02, 0.40, 0.92, 0.58, 0.10, 0.12, 0.80, 0.24, 0.28, 1.00),
        "mr": (0.02, 0.28, 0.08, 0.50, 0.20, 0.92, 0.70, 0.98, 0.95, 0.00),
        "us": (0.08, 0.26, 0.80, 0.50, 0.16, 0.06, 0.82, 0.03, 0.03, 1.00),
        "xray": (0.08, 0.30, 0.27, 0.15, -0.22, -0.12, 0.26, -0.15, 0.20, 0.42),
    }.items()
}
LOBES = {  # centre (|x|, y) and half axes of the organ on one side; lesions lie around the centre
    "lung": (0.41, -0.02, 0.30, 0.54),
    "liver": (0.40, -0.05, 0.44, 0.40),
    "kidney": (0.46, 0.10, 0.22, 0.37),
    "brain": (0.34, 0.00, 0.36, 0.62),
    "thyroid": (0.37, 0.05, 0.23, 0.44),
    "breast": (0.46, 0.10, 0.40, 0.56),
}
LESIONS = ("mass", "cyst", "calcification", "abscess", "effusion")
RADII = {"small": 0.095, "medium": 0.165, "large": 0.27}
STONES = {"small": 3, "medium": 6, "large": 12}  # of a calcification
SIDES = {"left": 1, "right": -1}  # the patient's; the sign of x

Masks = list[tuple[str, np.ndarray]]  # (thing, mask), bottom to top


class Picture(NamedTuple):
    """A drawn phantom."""

    pixels: np.ndarray  # uint8 (H, W)
    lesion: np.ndarray  # mask


def draw(
    modality: str,
    organ: str,
    lesion: str,
    size: str,
    side: str,
    *,
    rng: np.random.Generator,
    pixels: int,
) -> Picture:
    """One phantom; the shorter side has `pixels` pixels, the longer up to a sixth more."""
    longer = round(pixels * rng.uniform(1, 1.17))
    height, width = (pixels, longer) if rng.uniform() < 0.5 else (longer, pixels)
    rows, columns = np.mgrid[:height, :width]
    right, down = (2 * columns - width + 1) / pixels, (2 * rows - height + 1) / pixels
    tilt, zoom = rng.uniform(-0.1, 0.1), rng.uniform(0.95, 1.07)  # radians: up to 6 degrees
    cos, sin = np.cos(tilt) / zoom, np.sin(tilt) / zoom
    x, y = right - rng.uniform(-0.05, 0.05), down - rng.uniform(-0.05, 0.05)
    x, y = cos * x + sin * y, cos * y - sin * x

    level = LEVELS[modality]
    found = lesion_masks(organ, lesion, size, SIDES[side], x, y, rng)
    grey = np.full(x.shape, level["air"])
    if modality == "ct":  # the table under the patient
        grey[np.abs(down - 0.93 + 0.06 * right**2) < 0.02] = 0.55
    for thing, mask in organ_masks(organ, modality, x, y) + found:
        # a slice shows what is on top, a projection the sum of all
        grey += mask * (level[thing] if modality == "xray" else level[thing] - grey)
    grey *= 1 + 0.07 * smooth_noise(rng, x, 14) + 0.07 * smooth_noise(rng, x, 5)
    if modality == "us":  # stones cast a shadow, fluid brightens what lies behind it
        for thing, mask in found:
            behind = np.maximum.accumulate(mask, axis=0) * (1 - mask)
            grey *= 1 + {"stone": -0.6, "fluid": 0.35}.get(thing, 0.0) * behind
    grey = as_scanned(modality, grey, right, down, rng) * rng.uniform(0.9, 1.1)
    shade = np.clip(grey * 255, 0, 255).astype(np.uint8)
    return Picture(shade, np.max([mask for _, mask in found], axis=0))


def ellipse(x: np.ndarray, y: np.ndarray, cx: float, cy: float, a: float, b: float) -> np.ndarray:
    """Mask of an ellipse with half axes a, b; its edge is 0.05 wide."""
    inside = (1 - np.hypot((x - cx) / a, (y - cy) / b)) * min(a, b)
    return np.clip(inside / 0.05 + 0.5, 0, 1)


def smooth_noise(rng: np.random.Generator, like: np.ndarray, cells: int) -> np.ndarray:
    """Normal noise on a grid of cells x cells, interpolated to the shape of `like`."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    height, width = like.shape
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def organ_masks(organ: str, modality: str, x: np.ndarray, y: np.ndarray) -> Masks:
    """The body with the organ, without the lesion."""
    u = np.abs(x)  # both sides at once
    cx, cy, a, b = LOBES[organ]
    lobe = ellipse(u, y, cx, cy, a, b)
    if organ == "brain":
        skull, brain = ellipse(x, y, 0, 0, 0.80, 0.93), ellipse(x, y, 0, 0, 0.70, 0.83)
        falx = 0.4 * ellipse(x, y, 0, 0, 0.035, 0.80)
        ventricles = ellipse(u, y - 0.5 * u, 0.11, -0.06, 0.06, 0.26)
        head: Masks = [("body", skull), ("bone", skull - brain), ("organ", brain)]
        return [*head, ("bone", falx), ("cavity", ventricles)]
    if organ == "thyroid":  # two lobes with a bridge, before the trachea and a vertebra
        neck, vertebra = ellipse(x, y, 0, 0.05, 0.80, 0.88), ellipse(x, y, 0, 0.62, 0.24, 0.16)
        gland = np.maximum(lobe, ellipse(x, y, 0, 0.10, 0.30, 0.10))
        trachea = ellipse(x, y, 0, -0.12, 0.15, 0.16)
        return [("body", neck), ("organ", gland), ("bone", vertebra), ("cavity", trachea)]
    if organ == "breast":  # a fan of glands in each; the chest below
        chest, lungs = ellipse(x, y, 0, 1.35, 1.5, 0.90), ellipse(x, y, 0, 1.40, 1.3, 0.78)
        rays = np.clip(0.8 + 0.5 * np.cos(22 * np.arctan2(u - cx, 0.9 + y)), 0, 1)
        glands = ellipse(u, y, cx, cy, 0.75 * a, 0.85 * b) * rays * (1 - chest)
        return [("body", np.maximum(lobe, chest)), ("organ", glands), ("lung", lungs)]

    trunk, spine = ellipse(x, y, 0, 0, 0.97, 0.80), ellipse(x, y, 0, 0.58, 0.15, 0.15)
    if modality == "xray":  # from the front: the trunk fills the frame, the spine is a column
        trunk = ellipse(x, y, 0, 0.3, 1.05, 1.6)
        spine = ellipse(x, 0 * y, 0, 0, 0.12, 1) * (0.75 + 0.25 * np.cos(22 * y))
    if organ == "lung":
        heart = ellipse(x, y, 0.12, 0.20, 0.24, 0.28)
        ribs = np.clip(np.sin(15 * (y - 0.45 * u * u)), 0, 1) * lobe * (modality == "xray")
        return [("body", trunk), ("lung", lobe), ("organ", heart), ("bone", spine), ("bone", ribs)]
    if organ == "liver":  # the patient's right lobe is the larger
        left, right = ellipse(x, y, 0.36, -0.12, 0.48, 0.30), ellipse(x, y, -0.38, 0, 0.50, 0.56)
        return [("body", trunk), ("organ", np.maximum(left, right)), ("bone", spine)]
    bean = lobe * (1 - ellipse(u, y, cx - 0.2, cy, 0.15, 0.13))
    return [("body", trunk), ("organ", bean), ("bone", spine)]


def lesion_masks(
    organ: str,
    lesion: str,
    size: str,
    sign: int,
    x: np.ndarray,
    y: np.ndarray,
    rng: np.random.Generator,
) -> Masks:
    """The lesion, somewhere in the organ where x has this sign."""
    cx, cy, a, b = LOBES[organ]
    turn, far = rng.uniform(0, 2 * np.pi), 0.5 * np.sqrt(rng.uniform())
    # to the sides a lesion strays less, so that its side is never in doubt
    dx, dy = sign * x - cx - 0.6 * a * far * np.cos(turn), y - cy - b * far * np.sin(turn)
    r, stretch = RADII[size] * rng.uniform(0.88, 1.12), rng.uniform(0.85, 1.15)
    ra, rb = r * stretch, r / stretch
    if lesion == "mass":
        angle = np.arctan2(dy, dx)
        bumps = 1 + 0.14 * np.cos(3 * angle + turn) + 0.10 * np.cos(7 * angle + 5 * turn)
        return [("tissue", ellipse(dx / bumps, dy / bumps, 0, 0, r, r))]
    if lesion == "cyst":  # a thin wall
        inner = ellipse(dx, dy, 0, 0, ra - 0.035, rb - 0.035)
        return [("tissue", 0.7 * ellipse(dx, dy, 0, 0, ra, rb)), ("fluid", inner)]
    if lesion == "abscess":  # a thick wall
        core = ellipse(dx, dy, 0, 0, 0.55 * ra, 0.55 * rb)
        return [("tissue", ellipse(dx, dy, 0, 0, ra, rb)), ("fluid", core)]
    if lesion == "effusion":  # a crescent that opens towards the middle line
        bite = ellipse(dx, dy, -0.75 * r, -0.35 * r, 1.25 * r, 1.25 * r)
        return [("pool", ellipse(dx, dy, 0, 0, 1.35 * r, 1.35 * r) * (1 - bite))]
    index = np.arange(STONES[size])
    reach, angles = r * np.sqrt((index + 0.5) / len(index)), turn + 2.4 * index  # golden angle
    centres = zip(reach * np.cos(angles), reach * np.sin(angles), strict=True)
    return [("stone", np.max([ellipse(dx, dy, *at, 0.035, 0.035) for at in centres], axis=0))]


def as_scanned(
    modality: str, grey: np.ndarray, x: np.ndarray, y: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The modality's own noise and field of view, on grey levels (H, W) in 0..1."""
    noise = rng.standard_normal(grey.shape)
    if modality == "ct":
        return grey + 0.035 * noise
    if modality == "mr":  # uneven coil sensitivity; noise of a magnitude image
        coil = 1 + 0.10 * smooth_noise(rng, grey, 3)
        return np.hypot(grey * coil + 0.03 * noise, 0.03 * rng.standard_normal(grey.shape))
    if modality == "us":  # speckle multiplies; a fan is all that the probe sees
        coarse = smooth_noise(rng, grey, 36) ** 2 + smooth_noise(rng, grey, 36) ** 2
        speckle = np.sqrt(0.5 * (coarse + noise**2))
        depth = np.hypot(x, y + 1.75)
        fan = (np.abs(x) < 0.62 * (y + 1.75)) & (depth > 0.85) & (depth < 2.65)
        return grey * (0.35 + 0.65 * speckle) * (1.25 - 0.18 * depth) * fan
    frame = (np.abs(x) < 0.96) & (np.abs(y) < 0.96)  # the collimator's edge
    return (grey * (1 - 0.08 * np.abs(y)) + 0.02 * noise) * np.where(frame, 1, 0.08)
