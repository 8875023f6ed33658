"""The local page of `medclip_oc.app`: ranks captions, and searches an index.

What is dropped is deleted within two hours, and nothing leaves the machine: no telemetry, no fonts
or scripts from elsewhere. It answers by its own names and to its own pages alone: a foreign site
that is open in the same browser can neither read it (DNS rebinding) nor send it anything.
"""

import os
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..config.inference import AppConfig
from ..data.index import CAPTION
from ..data.shards import ShardSet
from ..errors import InputError, WorkError
from ..imaging.jpeg import Picture
from ..runtime.extras import needed
from . import search
from .embedder import Embedder, open_embedder
from .feature_index import Index
from .image_inputs import ImageSet
from .prompt_sets import PromptClass
from .ranking import FIELDS as RANKED
from .ranking import embed_candidates

TITLE = "medclip_oc"
NOTE = "Research use only: this is not a medical device."
_KEPT_SECONDS = 3600
_LARGEST_UPLOAD = "100mb"
_SHOWN = 512  # pixels of the longer side of a picture on the page


class Handlers:
    """What the page calls; without an index nothing can be searched. Their answers are a message,
    "" if all is well, and what to show.
    """

    def __init__(self, embedder: Embedder, index: Index | None) -> None:
        self.embedder, self.index = embedder, index
        self.shards, self.problem = _shards_of(index)

    def preview(self, file: str | None) -> Image.Image | None:
        """The picture in a file as the model gets it, or None."""
        try:
            return _picture(Path(file).read_bytes()) if file else None
        except (InputError, OSError):
            return None  # ranking says why

    def rank(self, file: str | None, lines: str, limit: str) -> tuple[str, list[Any]]:
        """Captions, one a line, ranked for the picture in a file; `limit` is "" or a cosine."""
        try:
            features = self._image(file)
            texts = dict.fromkeys(line.strip() for line in lines.splitlines() if line.strip())
            if not texts:
                raise InputError("type a caption, or several, one per line")
            candidates = [PromptClass(text, (text,)) for text in texts]
            ranked = embed_candidates(self.embedder, candidates, _cosine(limit))
            rows = ranked.rows(["image"], ranked.scores(features))
        except (InputError, WorkError) as error:
            return str(error), []
        return "", [_cells(row, RANKED) for row in rows]

    def search(
        self, text: str, file: str | None, number: float
    ) -> tuple[str, list[Any], list[Any]]:
        """Pairs of the index nearest to a text, or to the picture in a file where one is given."""
        assert self.index is not None
        try:
            if file is None and not text.strip():
                raise InputError("type a text, or drop an image")
            texts = [text.strip()]
            features = self.embedder.texts(texts)[0] if file is None else self._image(file)
            rows = search.answers(self.index, ["query"], features, max(1, int(number)))
        except (InputError, WorkError) as error:
            return str(error), [], []
        table = [_cells(row, search.FIELDS) for row in rows]
        if self.shards is None:
            return self.problem, [], table
        gallery = []
        for row in rows:
            caption = f"{row['rank']}. {row['id']} ({row['score']:.3f}): {row['caption']}"
            try:
                gallery.append((_picture(self.shards.read(row["position"]).image), caption))
            except (InputError, WorkError) as error:
                return f"{row['id']}: {error}", gallery, table
        return "", gallery, table

    def _image(self, file: str | None) -> torch.Tensor:
        """Features of the picture in a file: (1, D)."""
        if file is None:
            raise InputError("drop an image first")
        [(_, features, bad)] = self.embedder.images(ImageSet([Path(file)]))
        if bad:
            raise InputError(f"this image can't be read: {bad[0]}")
        return features


def _cells(row: dict[str, Any], fields: tuple[str, ...]) -> list[Any]:
    """What the page shows of a row, less what was asked."""
    values = (row[name] for name in fields[1:])
    return [round(value, 4) if isinstance(value, float) else value for value in values]


def _cosine(words: str) -> float | None:
    """What was typed into a field that may stay empty."""
    if not words.strip():
        return None
    with suppress(ValueError):
        number = float(words.replace(",", "."))
        if -1 <= number <= 1:
            return number
    raise InputError(f"{words.strip()!r} is no cosine, from -1 to 1")


def _picture(data: bytes) -> Image.Image:
    """A picture file for the page, decoded by our rules."""
    image = Picture(data, exact=True).image()[0].convert("RGB")
    image.thumbnail((_SHOWN, _SHOWN))
    return image


def _shards_of(index: Index | None) -> tuple[ShardSet | None, str]:
    """The pairs that an index was made of, and else why there are no pictures."""
    if index is None:
        return None, ""
    try:
        key = index.about.get("caption_key", CAPTION)  # absent from early ones
        shards = ShardSet.open(index.about["data"], index.about["split"], key, bare=True)
    except InputError as error:
        return None, f"no pictures: {error}"
    if shards.fingerprint != index.about["data_fingerprint"]:
        return None, f"no pictures: {index.about['data']} has changed since it was embedded"
    return shards, ""


def page(handlers: Handlers, title: str) -> Any:
    """The page, as gradio's Blocks."""
    import gradio

    # not gradio.Image, which decodes by rules of its own
    dropped = partial(gradio.File, height=140)
    table = partial(gradio.Dataframe, label="Best first", interactive=False, wrap=True)
    # no button that shares
    shown = {"interactive": False, "format": "png", "buttons": ["fullscreen"]}
    with gradio.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)
    ) as blocks:
        gradio.Markdown(f"# {title}\n{NOTE}")
        with gradio.Tab("Rank captions"):
            with gradio.Row():
                with gradio.Column():
                    file = dropped(label="Image", elem_id="rank-image")
                    picture = gradio.Image(label="As it is decoded", height=340, **shown)
                with gradio.Column():
                    lines = gradio.Textbox(
                        label="Captions, one per line", lines=8, elem_id="rank-captions"
                    )
                    # not gradio.Number: an empty one is 0
                    threshold = gradio.Textbox(
                        label='Cosine below which it is "none of these" (may be empty)',
                        elem_id="rank-threshold",
                    )
                    button = gradio.Button("Rank", variant="primary", elem_id="rank-button")
                    message = gradio.Markdown(elem_id="rank-message")
            rows = table(headers=list(RANKED[1:]), elem_id="rank-rows")
            file.change(handlers.preview, file, picture, api_visibility="private")
            given, answer = [file, lines, threshold], [message, rows]
            button.click(handlers.rank, given, answer, api_visibility="private")
        if handlers.index is None:
            return blocks
        with gradio.Tab("Search"):
            with gradio.Row():
                text = gradio.Textbox(label="Text", elem_id="search-text")
                file = dropped(label="or an image", elem_id="search-image")
                number = gradio.Slider(1, 50, value=8, step=1, label="How many")
            button = gradio.Button("Search", variant="primary", elem_id="search-button")
            message = gradio.Markdown(elem_id="search-message")
            gallery = gradio.Gallery(
                label="Pictures",
                columns=4,
                height="auto",
                object_fit="contain",  # whole, not cut to squares
                elem_id="search-gallery",
                **shown,
            )
            rows = table(headers=list(search.FIELDS[1:]), elem_id="search-rows")
            given, answer = [text, file, number], [message, gallery, rows]
            button.click(handlers.search, given, answer, api_visibility="private")
    return blocks


def names_of(host: str) -> list[str]:
    """The hosts that a browser may ask for; of every address, those by which the machine goes."""
    names = ["localhost", "127.0.0.1", host]
    if host == "0.0.0.0":
        names += [socket.gethostname(), socket.getfqdn()]
        with suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as outward:
            outward.connect(("192.0.2.1", 9))  # sends nothing: for documentation (RFC 5737)
            names.append(outward.getsockname()[0])
    return names


def same_origin(app: Any) -> Any:
    """An ASGI app that refuses what a page of another origin asks for: browsers name that."""
    from starlette.responses import PlainTextResponse

    async def checked(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        origin = headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
            await PlainTextResponse("another origin", 403)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return checked


def serve(settings: AppConfig) -> None:
    """Serve the page until it is interrupted; InputError: gradio is missing, or the index, the
    model or the address can't be used.
    """
    index = Index(Path(settings.index)) if settings.index else None
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    gradio = needed("gradio", "app")
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    embedder = open_embedder(settings)
    if index is not None:
        search.check_model(index, embedder)
    name = embedder.clip.description["name"]
    blocks = page(Handlers(embedder, index), f"{TITLE}: {name}")
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=names_of(settings.host))
    try:
        _, url, _ = blocks.launch(
            server_name=settings.host,
            server_port=settings.port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            theme=theme,
            max_file_size=_LARGEST_UPLOAD,
            app_kwargs={"middleware": [hosts, Middleware(same_origin)]},
        )
    except OSError as error:  # the port is taken, or the host is not ours
        where = f"--host {settings.host} --port {settings.port}"
        raise InputError(f"{where}: {' '.join(str(error).split())}") from error
    print(f"{name} at {url} (Ctrl-C ends it)", flush=True)
    blocks.block_thread()
