"""Templates to one self-contained HTML page.

Nothing is fetched from anywhere and no script runs: pictures are data URIs, charts are inline SVG.
A page reads on a phone, in light and dark. Whatever stands in a value is escaped.
"""

import io
from base64 import b64encode
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from . import plots

_PREVIEW_SIDE = 224


def render(template: str, **values: Any) -> str:
    """A whole page.

    Args:
        template: file name of one of the pages in `templates/`.
        values: what it asks for.
    """
    environment = Environment(
        loader=PackageLoader("medclip_oc.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": plots.svg, "data_uri": _data_uri}
    return environment.get_template(template).render(colours=plots.COLOURS, **values)


def preview(picture: Image.Image) -> bytes:
    """A small JPEG."""
    small = picture.copy()
    small.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return file.getvalue()


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + b64encode(jpeg).decode()
