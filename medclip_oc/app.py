"""A small local page: `python -m medclip_oc.app --checkpoint FILE [--index INDEX]`.

Drop an image, type captions, see them ranked; search an index by text or image and see pictures.
What is dropped is deleted within two hours, and nothing leaves the machine: no telemetry, no fonts
or scripts from elsewhere.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config.inference import AppConfig
from .errors import InputError, WorkError
from .runtime import command

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from .data.shards import ShardSet
    from .inference.embedder import Embedder
    from .inference.feature_index import Index

TITLE = "medclip_oc"
NOTE = "Research use only: this is not a medical device."
_RANKED = ("rank", "text", "cosine", "probability", "margin")
_FOUND = ("rank", "id", "score", "caption", "shard", "position")
_KEPT_SECONDS = 3600
_SHOWN = 512
"""Pixels of the longer side of a picture on the page."""


class Desk:
    """What the page asks for. Its answers are a message, "" if all is well, and what to show.

    Args:
        embedder: the model.
        index: what can be searched. None: nothing.
    """

    def __init__(self, embedder: "Embedder", index: "Index | None") -> None:
        self.embedder, self.index = embedder, index
        self.shards, self.problem = _shards_of(index)

    def preview(self, file: str | None) -> "Image | None":
        """The picture in a file as the model gets it, or None."""
        try:
            return _picture(Path(file).read_bytes()) if file else None
        except (InputError, OSError):
            return None  # ranking says why

    def rank(self, file: str | None, lines: str, limit: str) -> tuple[str, list[Any]]:
        """Captions, one a line, ranked for the picture in a file; `limit` is "" or a cosine."""
        from . import zeroshot
        from .inference import prompts

        try:
            features = self._image(file)
            texts = [line.strip() for line in lines.splitlines() if line.strip()]
            if not texts:
                raise InputError("type a caption, or several, one per line")
            threshold = _cosine(limit)
            found = prompts.gather(
                texts,
                None,
                text_column="text",
                label_column=None,
                templates=None,
                threshold=threshold is not None,
            )
            ranking = zeroshot.rank_of(self.embedder, found, threshold)
            rows = ranking.rows(["image"], ranking.scores(features))
        except (InputError, WorkError) as error:
            return str(error), []
        return "", [[row[name] for name in _RANKED] for row in rows]

    def search(
        self, text: str, file: str | None, number: float
    ) -> tuple[str, list[Any], list[Any]]:
        """Pairs of the index nearest to a text, or to the picture in a file where one is given."""
        from .inference import search

        assert self.index is not None
        try:
            if file is None and not text.strip():
                raise InputError("type a text, or drop an image")
            features = self.embedder.texts([text.strip()]) if file is None else self._image(file)
            rows = search.answers(self.index, ["query"], features, max(1, int(number)))
        except (InputError, WorkError) as error:
            return str(error), [], []
        table = [[row[name] for name in _FOUND] for row in rows]
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

    def _image(self, file: str | None) -> "torch.Tensor":
        """Features of the picture in a file: (1, D)."""
        from .inference.image_inputs import Files

        if file is None:
            raise InputError("drop an image first")
        [batch] = self.embedder.images(Files([Path(file)]))
        if batch.bad:
            raise InputError(f"this image can't be read: {batch.bad[0][1]}")
        return batch.features


def _cosine(words: str) -> float | None:
    """What was typed into a field that may stay empty."""
    if not words.strip():
        return None
    try:
        number = float(words.replace(",", "."))
    except ValueError:
        number = 2.0
    if not -1 <= number <= 1:
        raise InputError(f"{words.strip()!r} is no cosine, from -1 to 1")
    return number


def _picture(data: bytes) -> "Image":
    """A picture file for the page, decoded by our rules."""
    from .imaging.jpeg import Picture

    picture, _ = Picture(data, exact=True).image()
    picture = picture.convert("RGB")
    picture.thumbnail((_SHOWN, _SHOWN))
    return picture


def _shards_of(index: "Index | None") -> "tuple[ShardSet | None, str]":
    """The pairs that an index was made of, and else why there are no pictures."""
    from .data.shards import ShardSet

    if index is None:
        return None, ""
    try:
        shards = ShardSet.open(index.about["data"], index.about["split"])
    except InputError as error:
        return None, f"no pictures: {error}"
    if shards.fingerprint != index.about["data_fingerprint"]:
        return None, f"no pictures: {index.about['data']} has changed since it was embedded"
    return shards, ""


def page(desk: Desk, title: str) -> Any:
    """The page, as gradio's Blocks."""
    import gradio

    with gradio.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)
    ) as blocks:
        gradio.Markdown(f"# {title}\n{NOTE}")
        with gradio.Tab("Rank captions"):
            _rank_tab(gradio, desk)
        if desk.index is not None:
            with gradio.Tab("Search"):
                _search_tab(gradio, desk)
    return blocks


def _rank_tab(gradio: Any, desk: Desk) -> None:
    with gradio.Row():
        with gradio.Column():
            # not gradio.Image: that one decodes by rules of its own
            file = gradio.File(label="Image", elem_id="rank-image", height=140)
            shown = gradio.Image(
                label="As it is decoded",
                interactive=False,
                format="png",
                height=340,
                buttons=["fullscreen"],  # none that shares
            )
        with gradio.Column():
            lines = gradio.Textbox(label="Captions, one per line", lines=8, elem_id="rank-captions")
            # not gradio.Number: an empty one is 0
            threshold = gradio.Textbox(
                label='Cosine below which it is "none of these" (may be empty)',
                elem_id="rank-threshold",
            )
            button = gradio.Button("Rank", variant="primary", elem_id="rank-button")
            message = gradio.Markdown(elem_id="rank-message")
    rows = gradio.Dataframe(
        headers=list(_RANKED), label="Best first", elem_id="rank-rows", interactive=False, wrap=True
    )
    file.change(desk.preview, file, shown, api_visibility="private")
    button.click(desk.rank, [file, lines, threshold], [message, rows], api_visibility="private")


def _search_tab(gradio: Any, desk: Desk) -> None:
    with gradio.Row():
        text = gradio.Textbox(label="Text", elem_id="search-text")
        file = gradio.File(label="or an image", elem_id="search-image", height=140)
        number = gradio.Slider(1, 50, value=8, step=1, label="How many")
    button = gradio.Button("Search", variant="primary", elem_id="search-button")
    message = gradio.Markdown(elem_id="search-message")
    gallery = gradio.Gallery(
        label="Pictures",
        columns=4,
        height="auto",
        object_fit="contain",  # whole, not cut to squares
        format="png",
        elem_id="search-gallery",
        interactive=False,
        buttons=["fullscreen"],
    )
    rows = gradio.Dataframe(
        headers=list(_FOUND),
        label="Best first",
        elem_id="search-rows",
        interactive=False,
        wrap=True,
    )
    where = [message, gallery, rows]
    button.click(desk.search, [text, file, number], where, api_visibility="private")


def main(settings: AppConfig) -> None:
    """Serve the page until it is interrupted."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise InputError("the page needs gradio: pip install 'medclip_oc[app]'") from error
    from .inference import embedder as embedding
    from .inference import feature_index, search

    index = feature_index.Index(Path(settings.index)) if settings.index else None
    embedder = embedding.open_embedder(settings)
    if index is not None:
        search.check_model(index, embedder)
    name = embedder.clip.description["name"]
    blocks = page(Desk(embedder, index), f"{TITLE}: {name}")
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
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
        )
    except OSError as error:  # the port is taken, or the host is not ours
        where = f"--host {settings.host} --port {settings.port}"
        raise InputError(f"{where}: {' '.join(str(error).split())}") from error
    print(f"{name} at {url} (Ctrl-C ends it)", flush=True)
    blocks.block_thread()


if __name__ == "__main__":
    command.run(
        main,
        AppConfig,
        prog="python -m medclip_oc.app",
        description="A local page that ranks captions and searches an index.",
    )
