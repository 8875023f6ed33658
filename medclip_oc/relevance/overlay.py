"""Relevance maps as people look at them: over the picture, with the scale and the caption."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from ..config.fields import shorten
from ..errors import InputError
from ..imaging.decode import decode
from ..models import factory
from ..models.clip import Clip
from ..reporting import html
from ..runtime.atomic import atomic_file
from .maps import Relevance, explain, method_of, upright

_COLOURS = matplotlib.colormaps["viridis"]  # even in lightness, also to colour-blind eyes
_OPACITY = 0.6  # of the most relevant place; the least relevant one is clear
_GROUND, _INK = (17, 17, 17), (240, 240, 240)
_FOR, _AGAINST = (200, 100, 0), (0, 100, 200)  # orange and blue, which everybody tells apart


def overlay(image: Image.Image, relevance: Relevance, *, width: int = 512) -> Image.Image:
    """The picture under its map, with a legend of the scale, the caption and the cosine, words
    shaded: "RGB", `width` pixels wide. `image` is the one that was explained.
    """
    picture = upright(image).convert("RGB")
    scale = width / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    values = np.asarray(Image.fromarray(relevance.values).resize(size, Image.Resampling.BILINEAR))
    alpha = Image.fromarray((255 * _OPACITY * values).round().astype(np.uint8))
    font = ImageFont.truetype(findfont("DejaVu Sans"), max(13, width // 28))  # legible on a phone
    step = round(1.5 * font.size)  # from line to line
    words = relevance.words or [(word, 0.0) for word in relevance.text.split()]
    shown = Image.new("RGB", (width, size[1] + step * (len(words) + 4)), _GROUND)
    left, margin, top = (width - size[0]) // 2, step // 2, size[1] + step // 2
    shown.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, 0))
    shown.paste(Image.fromarray(_COLOURS(values, bytes=True)), (left, 0), alpha)
    draw = ImageDraw.Draw(shown, "RGBA")

    scale_left = margin + round(font.getlength("relevance 0 "))
    scale_values = np.tile(np.linspace(0, 1, width // 4), (step // 2, 1))
    shown.paste(Image.fromarray(_COLOURS(scale_values, bytes=True)), (scale_left, top))
    draw.text((margin, top), "relevance 0", _INK, font)
    draw.text((scale_left + width // 4, top), " 1", _INK, font)
    draw.text((width - margin, top), f"cosine {relevance.cosine:.3f}", _INK, font, anchor="ra")

    most = max((abs(share) for _, share in words), default=0.0) or 1.0
    x, top = float(margin), top + step
    for word, share in words:
        if x > margin and x + font.getlength(word) > width - margin:
            x, top = margin, top + step
        colour = (*(_FOR if share > 0 else _AGAINST), round(255 * abs(share) / most))
        draw.rectangle((x, top, x + font.getlength(word), top + step - 2), fill=colour)
        draw.text((x, top), word, _INK, font)
        x += font.getlength(f"{word} ")
    hint = "" if relevance.words is None else "Words: orange for, blue against. "
    draw.text((margin, top + step), f"{hint}Research use only.", _INK, font)
    return shown.crop((0, 0, width, top + 5 * step // 2))


def previews(
    checkpoint: Path, asked: Mapping[tuple[str, str], tuple[Image.Image, str]]
) -> dict[tuple[str, str], bytes]:
    """Overlays of pictures with a text each, as JPEGs for a page. InputError, WorkError: the
    checkpoint can't be read, or its model has no maps.
    """
    clip, shown = factory.load(checkpoint), dict[tuple[str, str], bytes]()
    for name, (image, text) in asked.items():
        drawn = overlay(image, explain(clip, image, [text])[0], width=320)
        shown[name] = html.preview(drawn, max(drawn.size))
    return shown


def map_writer(
    folder: str, clip: Clip, candidates: Sequence[Sequence[str]], top: int
) -> Callable[[str, bytes, Sequence[int]], None]:
    """What writes FOLDER/STEM-K.png, and .npy, (H, W) float32, for the K-th text of an image, given
    the image's name, its bytes, and the numbers of its best candidates. InputError: a candidate
    has several texts; the folder isn't empty, or can't be made; the model has no maps.
    """
    if several := [texts for texts in candidates if len(texts) > 1]:
        raise InputError(f"--explain: a candidate must be one text; one is {shorten(several[0])}")
    method_of(clip)
    out = Path(folder)
    try:  # an earlier call that failed left it empty
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise InputError(f"--explain: {folder}: the folder is not empty")
    except OSError as error:
        raise InputError(f"--explain: {folder}: no folder ({error.strerror})") from None

    def write(name: str, data: bytes, best: Sequence[int]) -> None:
        stem = own = Path(name).stem[:60]
        number = 1
        while (out / f"{stem}-1.npy").exists():  # of another image
            number += 1
            stem = f"{own}.{number}"
        image, texts = decode(data), [candidates[m][0] for m in best[:top]]
        for rank, relevance in enumerate(explain(clip, image, texts, words=True), 1):
            file = out / f"{stem}-{rank}.npy"
            with atomic_file(file) as partial, partial.open("wb") as stream:
                np.save(stream, relevance.values)
            with atomic_file(file.with_suffix(".png")) as partial:
                overlay(image, relevance).save(partial, "PNG")

    return write
