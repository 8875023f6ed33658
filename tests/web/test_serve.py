"""The page, driven in a real browser: what a user drops and types, and what is then to be seen."""

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from medclip_oc import app
from medclip_oc.config.inference import AppConfig
from tests.support.cli import call
from tests.support.image_files import dicom, png_16
from tests.support.processes import free_port
from tests.support.tiny_dataset import jpeg

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
_APP = """
from medclip_oc import app
from medclip_oc.web import serve
serve._LARGEST_UPLOAD = "1mb"
app.command.run(app.main, app.AppConfig)
"""
RAMP = np.arange(2400, dtype=np.uint16).reshape(40, 60)
POOR_CONTRAST = """() => {
  const rgba = (colour) => colour.match(/^rgba?.(.*).$/)[1].split(",").map(Number);
  const over = (top, low) => low.map((v, i) => v + (top[i] - v) * (top[3] ?? 1));
  const ground = (it) => it
    ? over(rgba(getComputedStyle(it).backgroundColor), ground(it.parentElement)) : [255, 255, 255];
  const luminance = (colour) => colour.map((v) => v / 255)  // WCAG 2.2
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
  return [...document.querySelectorAll("body *")].filter((it) => {
    if (![...it.childNodes].some((c) => c.nodeType == 3 && c.data.trim())) return false;
    const low = ground(it), top = over(rgba(getComputedStyle(it).color), low);
    const [a, b] = [luminance(top), luminance(low)].sort();
    return it.checkVisibility() && it.getClientRects().length && b / a < 4.5;
  }).map((it) => it.textContent);
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=browser, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tiny_checkpoint: Path, index: Path) -> Iterator[str]:
    words = ["--checkpoint", tiny_checkpoint, "--index", index, "--port", free_port()]
    with served(*words) as url:
        yield url


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
            done.kill()
        assert "Traceback" not in (done.stderr.read() if done.stderr else "")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_a_browser(width: int, chromium: Any, address: str, tmp_path: Path) -> None:
    """What a user drops, types and presses, and what is then to be seen; nothing from elsewhere."""
    (tmp_path / "a.jpg").write_bytes(jpeg(3))
    (tmp_path / "deep.png").write_bytes(png_16(RAMP[..., None]))
    (tmp_path / "scan.dcm").write_bytes(dicom(RAMP, WindowCenter=400, WindowWidth=300))
    (tmp_path / "broken.jpg").write_bytes(b"junk")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "many.csv").write_text("caption\n" + "".join(f"number {n}\n" for n in range(60)))
    theme = "light" if width > 390 else "dark"
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    asked = list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    captions, go = page.get_by_label("Captions, one per line"), page.locator("button.go:visible")
    answer, image = page.locator(".answer:visible"), page.locator("input[type=file]").first

    def check() -> None:
        assert page.evaluate(POOR_CONTRAST) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    def refused(field: str, good: str, said: str) -> None:
        """Beyond the slider, and nothing at all, in words at the place; then `good` again."""
        number = page.get_by_label(f"number input for {field}")
        told = page.get_by_role("alert").get_by_text(said)
        for typed in ("99999", good, "", good):
            number.fill(typed)
            if "Window" not in field:  # leaving the field would bring it back to its slider
                number.press("Control+Enter")
            told.wait_for(state="detached" if typed == good else "visible")

    def drop(name: str) -> None:
        page.get_by_label("Clear").first.click()
        image.set_input_files(tmp_path / name)

    captions.fill("a mass in the left lung\npleural effusion\nno finding")
    assert "best.pt" in page.title()
    assert "Research use only" in page.inner_text("body")
    go.click()
    page.get_by_role("alert").get_by_text("drop an image first").wait_for()
    image.set_input_files(tmp_path / "a.jpg")
    page.get_by_text("What the model sees").wait_for()
    captions.press("Control+Enter")
    answer.locator("li").nth(2).wait_for()
    assert 40 < answer.bounding_box()["y"] - go.bounding_box()["y"] < 100  # right below
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.get_by_label("Why").first.check()
    go.click()
    answer.locator("figure img").nth(2).wait_for()
    check()
    page.get_by_text("Captions from a file").click()
    table = page.locator("input[type=file]").last
    table.set_input_files(tmp_path / "bad.csv")
    page.get_by_role("alert").get_by_text(re.compile(r"^bad.csv: no column .*'b'$")).wait_for()
    table.set_input_files(tmp_path / "many.csv")
    page.wait_for_function("document.querySelector('textarea').value.includes('number 59')")
    go.click()
    answer.locator("li").nth(59).wait_for()
    refused("Cosine", "0.1", "the cosine of a threshold: from -1 (none) to 1")
    for name, value in (("deep.png", "2399"), ("scan.dcm", "300")):
        drop(name)
        page.wait_for_function(
            f"[...document.querySelectorAll('input')].some(i => i.value=='{value}')"
        )
        assert answer.count() == 0  # what was said of the one before
        before = page.locator("img[src*='/file=']").first.get_attribute("src")
        page.get_by_label("number input for Window width").fill("100")
        page.wait_for_function(f"document.querySelector('img[src*=\"/file=\"]').src != '{before}'")
        refused("Window centre", "500", "window centre: a number from 0 to 2,399")
        refused("Window width", "100", "window width: a number from 1 to 2,399")
        check()
    drop("broken.jpg")
    page.get_by_role("alert").get_by_text("undecodable").wait_for()
    page.get_by_role("tab", name="Search").click()
    page.get_by_label("Text (none").fill("upper left bright")
    page.keyboard.press("Enter")
    answer.locator("figure img").nth(7).wait_for()
    check()
    refused("How many", "3", "how many: a whole number from 1 to 50")
    drop("a.jpg")
    page.get_by_text("What the model sees").wait_for()
    page.get_by_role("tab", name="Findings").click()
    go.press("Enter")
    answer.locator("li").nth(3).wait_for()
    check()
    assert {urlsplit(url).netloc for url in asked if url[:4] == "http"} == {address.split("/")[2]}


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
