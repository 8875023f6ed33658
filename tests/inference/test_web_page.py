"""The page, driven in a real browser: what a user drops and types, and what is then to be seen."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from medclip_oc import app, embed
from medclip_oc.config.inference import AppConfig, EmbedConfig
from medclip_oc.config.schema import ModelConfig
from medclip_oc.data.shards import ShardSet
from medclip_oc.inference import embedder as embedding
from medclip_oc.inference import feature_index
from medclip_oc.inference.web_page import Handlers
from medclip_oc.models import checkpoint, factory
from tests.support.cli import call
from tests.support.processes import free_port
from tests.support.tiny_dataset import jpeg
from tests.support.tiny_models import TINY

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
SHOTS = os.environ.get("MEDCLIP_SHOTS")  # a folder for screenshots, to be looked at by hand
CAPTIONS = ["a mass in the left lung", "no finding", "pleural effusion"]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clip = factory.build(ModelConfig(arch="app-test", definition=TINY), seed=3)
    file = tmp_path_factory.mktemp("app") / "best.pt"
    content = {"state_dict": clip.towers.clip.state_dict(), "model": clip.description}
    checkpoint.save(file, {**content, "config": {}})
    return file


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, checked: Path, packed: Path) -> Path:
    out = tmp_path_factory.mktemp("index") / "train"
    words = ["--checkpoint", checked, "--data", packed, "--split", "train", "--out", out]
    assert call(embed.main, EmbedConfig, *words) == 0
    return out


@pytest.fixture(scope="module")
def handlers(checked: Path, index: Path) -> Handlers:
    embedder = embedding.Embedder(factory.load(checked), torch.device("cpu"))
    return Handlers(embedder, feature_index.Index(index))


def test_answers_without_a_browser(handlers: Handlers, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(3))
    (tmp_path / "b.jpg").write_bytes(b"junk")
    message, rows = handlers.rank(str(tmp_path / "a.jpg"), "\n".join(CAPTIONS) + "\n\n", "")
    assert message == ""
    assert [row[0] for row in rows] == [1, 2, 3]
    assert {row[1] for row in rows} == set(CAPTIONS)
    assert rows[0][2] > rows[1][2] > rows[2][2]
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
    checked: Path, index: Path, packed: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(packed, tmp_path / "shards")
    words = ["--checkpoint", checked, "--data", other, "--split", "train"]
    assert call(embed.main, EmbedConfig, *words, "--out", tmp_path / "index") == 0
    shutil.rmtree(other)
    opened = feature_index.Index(tmp_path / "index")
    handlers = Handlers(embedding.Embedder(factory.load(checked), torch.device("cpu")), opened)
    message, gallery, rows = handlers.search("bright", None, 3)
    assert message.startswith("no pictures: ")
    assert (gallery, len(rows)) == ([], 3)


# ------------------------------------------------------------------------------------- a browser


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
    run = [sys.executable, "-m", "medclip_oc.app", *map(str, words)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as done:
        try:
            assert done.stdout is not None
            line = done.stdout.readline()
            assert " at http://127.0.0.1:" in line, done.stderr.read() if done.stderr else ""
            yield line.split(" at ")[1].split()[0]
        finally:
            done.terminate()


def show(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS, f"{name}.png")), full_page=True)


@pytest.mark.slow
def test_the_page_in_a_browser(
    page: Any, checked: Path, index: Path, handlers: Handlers, tmp_path: Path
) -> None:
    """Upload, captions, ranked result; search by text and image; nothing from elsewhere."""
    (tmp_path / "a.jpg").write_bytes(jpeg(3))
    (tmp_path / "junk.jpg").write_bytes(b"junk")
    asked = list[str]()
    page.on("request", lambda request: asked.append(request.url))
    words = ["--checkpoint", checked, "--index", index, "--port", free_port()]
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
        show(page, "rank")
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
        show(page, "search")
        page.set_input_files("#search-image input[type=file]", tmp_path / "junk.jpg")
        page.wait_for_selector("#search-image >> text=junk")
        page.click("#search-button")
        page.wait_for_selector("#search-message >> text=can't be read")
        show(page, "junk")
    elsewhere = {urlsplit(one).netloc for one in asked if one.startswith("http")}
    assert elsewhere == {urlsplit(url).netloc}


def test_mistakes(checked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: object) -> str:
        assert call(app.main, AppConfig, "--checkpoint", checked, *words) == 2
        return capsys.readouterr().err

    assert said("--port", 0) == "test: --port: 0 is not from 1 to 65535\n"
    assert "no such folder; medclip_oc.embed makes one" in said("--index", "nowhere")
