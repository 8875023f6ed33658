"""Templates to one self-contained HTML page, and to the model card.

Nothing is fetched from anywhere and no script runs: pictures are data URIs, charts are inline SVG.
A page reads on a phone, in light and dark. Whatever stands in a value is escaped in HTML.
"""

import io
from base64 import b64encode
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

from . import plots


def render(template: str, **values: Any) -> str:
    """A whole page: one of those in `templates/`, with the values that it asks for."""
    environment = Environment(
        loader=PackageLoader("medclip_oc.reporting"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = plots.svg
    start = "data:image/jpeg;base64,"
    environment.filters["data_uri"] = lambda jpeg: start + b64encode(jpeg).decode()
    return environment.get_template(template).render(colours=plots.COLOURS, **values)


def preview(picture: Image.Image, side: int = 224) -> bytes:
    """A small JPEG."""
    small, file = picture.copy(), io.BytesIO()
    small.info = {}  # Pillow would write comments
    small.thumbnail((side, side))
    small.save(file, "JPEG", quality=80)
    return file.getvalue()
