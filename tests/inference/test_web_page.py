"""The page, driven in a real browser: what a user drops and types, and what is then to be seen."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from medclip_oc import app
from medclip_oc.config.inference import AppConfig
from medclip_oc.data.shards import ShardSet
from medclip_oc.inference.embedder import Embedder
from medclip_oc.inference.feature_index import Index
from medclip_oc.inference.web_page import Handlers
from medclip_oc.models import factory
from tests.support.cli import call
from tests.support.processes import free_port
from tests.support.tiny_dataset import jpeg

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
_APP = """
from medclip_oc import app
from medclip_oc.inference import web_page
web_page._LARGEST_UPLOAD = "1mb"
app.command.run(app.main, app.AppConfig)
"""
CAPTIONS = ["a mass in the left lung", "no finding", "pleural effusion"]


@pytest.fixture(scope="module")
def handlers(tiny_checkpoint: Path, index: Path) -> Handlers:
    return Handlers(Embedder(factory.load(tiny_checkpoint), torch.device("cpu")), Index(index))


def test_answers_without_a_browser(handlers: Handlers, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(3))
    (tmp_path / "b.jpg").write_bytes(b"junk")
    message, rows = handlers.rank(str(tmp_path / "a.jpg"), "\n".join(CAPTIONS) + "\n\n", "")
    assert message == ""
    assert [row[0] for row in rows] == [1, 2, 3]
    assert {row[1] for row in rows} == set(CAPTIONS)
    assert rows[0][2] > rows[1][2] > rows[2][2]
    assert all(number == round(number, 4) for row in rows for number in row[2:])
    _, rows = handlers.rank(str(tmp_path / "a.jpg"), "x", " 1,0 ")
    assert rows[0][1] == "none of these"
    assert handlers.rank(str(tmp_path / "a.jpg"), "x", "2")[0] == "'2' is no cosine, from -1 to 1"
    assert handlers.rank(None, "x", "") == ("drop an image first", [])
    assert "type a caption" in handlers.rank(str(tmp_path / "a.jpg"), " \n", "")[0]
    assert "can't be read: undecodable" in handlers.rank(str(tmp_path / "b.jpg"), "x", "")[0]
    assert handlers.preview(str(tmp_path / "b.jpg")) is None
    picture = handlers.preview(str(tmp_path / "a.jpg"))
    assert picture is not None
    assert picture.size == (48, 40)
    (tmp_path / "q.jpg").write_bytes(ShardSet.open(str(packed), "train").read(30).image)
    message, gallery, rows = handlers.search("", str(tmp_path / "q.jpg"), 4)
    assert (message, len(gallery), len(rows)) == ("", 4, 4)
    assert rows[0][1] == "train_0030"
    assert gallery[0][1].startswith("1. train_0030 (1.000): number 30: ")
    assert handlers.search(" ", None, 4) == ("type a text, or drop an image", [], [])


def test_an_index_whose_pairs_are_gone_has_no_pictures(
    handlers: Handlers, index: Path, tmp_path: Path
) -> None:
    for name, value, reason in (
        ("data", str(tmp_path / "nowhere"), "nowhere"),
        ("data_fingerprint", "another", "has changed since it was embedded"),
    ):
        opened = Index(index)
        opened.about[name] = value
        message, gallery, rows = Handlers(handlers.embedder, opened).search("bright", None, 3)
        assert message.startswith("no pictures: ")
        assert reason in message
        assert (gallery, len(rows)) == ([], 3)


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page in headless Chromium, which notes what it asks for."""
    playwright = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=FLAGS)
        found = chromium.new_page(viewport={"width": 1280, "height": 1000})
        yield found
        chromium.close()


@contextlib.contextmanager
def served(*words: object) -> Iterator[str]:
    """The address of a page in a process of its own."""
    pytest.importorskip("gradio")
    run = [sys.executable, "-c", _APP, *map(str, words)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as done:
        try:
            assert done.stdout is not None
            line = done.stdout.readline()
            assert " at http://127.0.0.1:" in line, done.stderr.read() if done.stderr else ""
            yield line.split(" at ")[1].split()[0]
        finally:
            done.terminate()


@pytest.mark.slow
def test_the_page_in_a_browser(
    page: Any, tiny_checkpoint: Path, index: Path, handlers: Handlers, tmp_path: Path
) -> None:
    """Upload, captions, ranked result; search by text; nothing from elsewhere."""
    (tmp_path / "a.jpg").write_bytes(jpeg(3))
    asked = list[str]()
    page.on("request", lambda request: asked.append(request.url))
    words = ["--checkpoint", tiny_checkpoint, "--index", index, "--port", free_port()]
    with served(*words) as url:
        page.goto(url)
        page.wait_for_selector("#rank-captions textarea", timeout=60_000)
        page.fill("#rank-captions textarea", "\n".join(CAPTIONS))
        page.click("#rank-button")
        page.wait_for_selector("#rank-message >> text=drop an image first")
        page.set_input_files("#rank-image input[type=file]", tmp_path / "a.jpg")
        page.wait_for_selector("img[src*='/file=']")
        page.click("#rank-button")
        _, rows = handlers.rank(str(tmp_path / "a.jpg"), "\n".join(CAPTIONS), "")
        for row in rows:
            page.wait_for_selector(f"#rank-rows >> text={row[1]} >> visible=true")
        seen = page.inner_text("#rank-rows")
        assert [seen.index(row[1]) for row in rows] == sorted(seen.index(row[1]) for row in rows)
        assert "none of these" not in seen
        page.fill("#rank-threshold input, #rank-threshold textarea", "1")
        page.click("#rank-button")
        page.wait_for_selector("#rank-rows >> text=none of these >> visible=true")
        page.get_by_role("tab", name="Search").click()
        page.fill("#search-text textarea, #search-text input", "upper left bright")
        page.click("#search-button")
        _, _, rows = handlers.search("upper left bright", None, 8)
        page.wait_for_selector(f"#search-rows >> text={rows[0][1]} >> visible=true")
        page.wait_for_selector("#search-gallery img")
        assert page.locator("#search-gallery .grid-wrap img").count() == 8
        assert rows[0][3] in page.inner_text("#search-gallery")
    elsewhere = {urlsplit(one).netloc for one in asked if one.startswith("http")}
    assert elsewhere == {urlsplit(url).netloc}


@pytest.mark.slow
def test_foreign_sites_get_nothing(tiny_checkpoint: Path, index: Path) -> None:
    """Over HTTP: a name that was rebound to this address, another site's script, a huge upload."""
    port = free_port()

    def status(path: str, host: str, origin: str | None = None, size: int | None = None) -> int:
        head = 'Content-Disposition: form-data; name="files"; filename="a.jpg"'
        body = f"--x\r\n{head}\r\n\r\n{'-' * (size or 0)}\r\n--x--\r\n".encode()
        headers = {"Host": host, "Content-Type": "multipart/form-data; boundary=x"}
        headers |= {"Origin": origin} if origin else {}
        with contextlib.closing(HTTPConnection("127.0.0.1", port)) as asked:
            asked.request("POST" if size else "GET", path, body if size else None, headers)
            return asked.getresponse().status

    own, upload = f"127.0.0.1:{port}", "/gradio_api/upload"
    with served("--checkpoint", tiny_checkpoint, "--index", index, "--port", port):
        for host in (own, f"localhost:{port}", f"evil.example:{port}", f"{own}.evil.example", ""):
            code = 200 if host in (own, f"localhost:{port}") else 400
            assert {status(path, host) for path in ("/", "/config", "/gradio_api/info")} == {code}
            assert status(upload, host, size=10) == code
        for other in (own, "evil.example", f"127.0.0.1:{port + 1}", f"{own}.evil.example"):
            origin, code = f"http://{other}", 200 if other == own else 403
            assert status(upload, own, origin, 10) == status("/config", own, origin) == code
        assert status(upload, own, "null", 10) == status("/config", own, "null") == 403
        assert status(upload, own, size=1_100_000) == 413


def test_mistakes(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: object) -> str:
        assert call(app.main, AppConfig, "--checkpoint", tiny_checkpoint, *words) == 2
        return capsys.readouterr().err

    assert said("--port", 0) == "test: --port: 0 is not from 1 to 65535\n"
    for host in ("*", "::1"):
        assert said("--host", host) == f"test: --host: {host!r} is not a name or IPv4 address\n"
    assert "no such folder; medclip_oc.embed makes one" in said("--index", "nowhere")
