"""A relevance map as people look at it: over the picture, with the scale and the caption."""

import matplotlib
import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from .maps import Relevance, upright

_COLOURS = matplotlib.colormaps["viridis"]  # even in lightness, also to colour-blind eyes
_OPACITY = 0.6  # of the most relevant place; the least relevant one is clear
_GROUND, _INK = (17, 17, 17), (240, 240, 240)
_FOR, _AGAINST = (200, 100, 0), (0, 100, 200)  # orange and blue, which everybody tells apart
_LINES, _LETTERS = 12, 36  # most of a caption, and of a piece of a word


def overlay(image: Image.Image, relevance: Relevance, *, width: int = 512) -> Image.Image:
    """The picture under its map, with a legend of the scale, the caption and the cosine, words
    shaded: "RGB", `width` pixels wide. `image` is the one that was explained.
    """
    picture = upright(image).convert("RGB")
    scale = width / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    values = np.asarray(Image.fromarray(relevance.values).resize(size, Image.Resampling.BILINEAR))
    alpha = Image.fromarray((255 * _OPACITY * values).round().astype(np.uint8))
    font = ImageFont.truetype(findfont("DejaVu Sans"), max(10, width // 36))
    step = round(1.5 * font.size)  # from line to line
    shown = Image.new("RGB", (width, size[1] + step * (_LINES + 4)), _GROUND)
    left, margin, top = (width - size[0]) // 2, step // 2, size[1] + step // 2
    shown.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, 0))
    shown.paste(_heat(values), (left, 0), alpha)
    draw = ImageDraw.Draw(shown, "RGBA")

    scale_left = margin + round(font.getlength("relevance 0 "))
    shown.paste(_heat(np.tile(np.linspace(0, 1, width // 4), (step // 2, 1))), (scale_left, top))
    draw.text((margin, top), "relevance 0", _INK, font)
    draw.text((scale_left + width // 4, top), " 1", _INK, font)
    draw.text((width - margin, top), f"cosine {relevance.cosine:.3f}", _INK, font, anchor="ra")

    words = relevance.words or [(word, 0.0) for word in relevance.text.split()]
    most = max((abs(share) for _, share in words), default=0.0) or 1.0
    x, top, last = float(margin), top + step, top + step * _LINES
    for word, share in words:
        colour = (*(_FOR if share > 0 else _AGAINST), round(255 * abs(share) / most))
        for piece in (word[n : n + _LETTERS] for n in range(0, len(word), _LETTERS)):
            if x > margin and x + font.getlength(piece) > width - margin:
                x, top = margin, top + step
            if top <= last:
                text = piece if top < last else "…"
                draw.rectangle((x, top, x + font.getlength(text), top + step - 2), fill=colour)
                draw.text((x, top), text, _INK, font)
            x += font.getlength(f"{piece} ")
    top = min(top, last) + step
    hint = "" if relevance.words is None else "Words: orange for, blue against. "
    draw.text((margin, top), f"{hint}Research use only.", _INK, font)
    return shown.crop((0, 0, width, top + 2 * step))


def _heat(values: np.ndarray) -> Image.Image:
    return Image.fromarray(_COLOURS(values, bytes=True)[..., :3])
