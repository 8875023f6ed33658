"""Serving the page: what is dropped is deleted within two hours, and nothing leaves the machine.

No telemetry, no fonts or scripts from elsewhere. It answers by its own names and to its own pages
alone: a foreign site in the same browser can't read it (DNS rebinding), nor send it anything.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..config.inference import AppConfig
from ..errors import InputError
from ..inference import search
from ..inference.embedder import open_embedder
from ..inference.feature_index import Index
from ..runtime.extras import needed
from .handlers import Handlers
from .page import KEYS, page

_LARGEST_UPLOAD = "100mb"


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
        ours = origin is None or origin.partition(b"://")[2] == headers.get(b"host")
        answer = app if ours else PlainTextResponse("another origin", 403)
        await answer(scope, receive, send)

    return checked


def serve(settings: AppConfig) -> None:
    """Serve it until it is interrupted; InputError: no gradio, or a bad index, model or address."""
    index = Index(Path(settings.index)) if settings.index else None
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    gradio = needed("gradio", "app")
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    embedder = open_embedder(settings)
    if index is not None:
        search.check_model(index, embedder)
    named = {name: getattr(settings, name) for name in ("checkpoint", "model", "pretrained")}
    step = embedder.clip.run.get("step")
    title = " ".join(filter(None, named.values())) + ("" if step is None else f", step {step}")
    blocks = page(Handlers(embedder, named, index), title)
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
            css_paths=Path(__file__).with_name("page.css"),
            head=KEYS,
            max_file_size=_LARGEST_UPLOAD,
            app_kwargs={"middleware": [hosts, Middleware(same_origin)]},
        )
    except OSError as error:  # the port is taken, or the host is not ours
        where = f"--host {settings.host} --port {settings.port}"
        raise InputError(f"{where}: {' '.join(str(error).split())}") from error
    print(f"{title} at {url} (Ctrl-C ends it)", flush=True)
    blocks.block_thread()
