"""What the page answers, without a browser."""

import json
import shlex
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

from medclip_oc import zeroshot
from medclip_oc.config.inference import ZeroshotConfig
from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import InputError
from medclip_oc.imaging.decode import decode
from medclip_oc.inference.embedder import Embedder
from medclip_oc.inference.feature_index import Index
from medclip_oc.models import factory
from medclip_oc.web.handlers import Handlers, Seen
from tests.support.cli import NASTY, Reader, call
from tests.support.tiny_dataset import jpeg

CAPTIONS = ["a mass in the left lung", "- no finding's here", NASTY]


@pytest.fixture(scope="module")
def handlers(tiny_checkpoint: Path, index: Path) -> Handlers:
    embedder = Embedder(factory.load(tiny_checkpoint), torch.device("cpu"))
    return Handlers(embedder, {"checkpoint": str(tiny_checkpoint), "model": None}, Index(index))


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    monkeypatch.chdir(tmp_path)
    Path("a b.jpg").write_bytes(jpeg(3))
    return decode(jpeg(3)), "a b.jpg", False


def in_a_shell(page: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The rows that a page's command prints."""
    command = unescape(page.partition("<code>")[2].partition("</code>")[0])
    assert call(zeroshot.main, ZeroshotConfig, *shlex.split(command)[3:], "--format", "jsonl") == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    "ask",
    [
        lambda handlers, seen: handlers.rank(
            seen, "\n".join([*CAPTIONS, " ", "x", "x"]), 0.0, True
        ),
        lambda handlers, seen: handlers.rank(seen, "\n".join([*CAPTIONS, "x"]), -1, True),
        lambda handlers, seen: handlers.findings(seen, "chexpert5", True),
        lambda handlers, seen: handlers.findings(seen, "modality", True),
    ],
)
def test_answers_are_those_of_the_command(
    ask: Any, handlers: Handlers, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ask(handlers, seen)
    rows, shown = in_a_shell(page, capsys), Reader(page)
    rows.sort(key=lambda row: -row["probability"])
    places = [shown.text.index(f"\n{row.get('text', row.get('finding'))}\n") for row in rows]
    assert places == sorted(places)
    for row in rows:
        share = "< 0.1" if row["probability"] < 0.0005 else f"{100 * row['probability']:.1f}"
        cosines = [f"{value:.3f}" for key, value in row.items() if key.startswith("cosine")]
        assert all(number in shown.text for number in (f"{share} %", *cosines))
    assert shown.tags.count("figure") == 3  # maps of the best
    explains = "none of these" not in shown.text and "--multi-label" not in page  # as it can
    explains &= "--prompts" not in page
    assert len([*Path().glob("maps/*.png")]) == 3 * explains
    assert "script" not in shown.tags
    kept = [*handlers.sets.values()]
    assert ask(handlers, seen) == page
    assert [*handlers.sets.values()] == kept  # embedded once


def test_search_by_text_and_by_picture(
    handlers: Handlers, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, file = ShardSet.open(str(packed), "train").read(30).image, tmp_path / "q.jpg"
    file.write_bytes(image)
    for text in (" bright ", ""):
        page = handlers.search((decode(image), str(file), False), text, 4)
        shown = Reader(page)
        assert shown.tags.count("img") == 4
        ids = [value for name, value in shown.attributes if name == "title"]
        assert ids == [row["id"] for row in in_a_shell(page, capsys)]
    assert ids[0] == "train_0030"
    assert "number 30: " in shown.text
    assert "cosine 1.000, 0030" in shown.text
    windowed = handlers.search((decode(image), str(file), True), "", 4)
    assert "in a shell, but in the file's own window" in Reader(windowed).text
    for number in (2.5, 0, 51, None):
        with pytest.raises(InputError, match="how many: a whole number from 1 to 50"):
            handlers.search(None, "bright", number)
    with pytest.raises(InputError, match="threshold: from -1"):
        handlers.rank(None, "bright", None, False)
    with pytest.raises(InputError, match="pick a prompt set"):
        handlers.findings(None, "/etc/passwd", False)
    with pytest.raises(InputError, match="type a text, or drop an image first"):
        handlers.search(None, " ", 4)


def test_an_index_whose_pairs_are_gone_has_no_pictures(handlers: Handlers, index: Path) -> None:
    for name, why in ("data", "no pictures: nowhere"), ("data_fingerprint", "has changed since"):
        opened = Index(index)
        opened.about[name] = "nowhere"
        page = Reader(Handlers(handlers.embedder, {}, opened).search(None, "bright", 3))
        assert why in page.text
        assert (page.tags.count("figure"), page.tags.count("img")) == (3, 0)


def test_captions_of_a_file_and_long_ones(tmp_path: Path, handlers: Handlers, seen: Seen) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no column 'text or caption'"):
        handlers.captions(str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text('caption,b\n"one\ntwo",2\nthree,4\n')
    assert handlers.captions(str(tmp_path / "t.csv")) == "one two\nthree"
    page = handlers.rank(seen, "word " * 99, -1, False)
    assert "so cut: word word" in page
    assert "none of these" not in page


def test_samples_are_of_the_runs_validation(handlers: Handlers, packed: Path) -> None:
    for data, count in ((str(packed), 6), ("nowhere", 0), (None, 0)):
        again = Handlers(handlers.embedder, {})
        again.embedder.clip.run = {"config": {"data": {"valid": data}}}
        assert [name for _, name, _ in again.samples] == [
            f"valid_{2 * n:04}.jpg" for n in range(count)
        ]
