"""Shards behind commands and URLs: an order that can be repeated, at any world size."""

import shutil
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from medclip_oc.config.schema import Config, DataConfig, TrainConfig
from medclip_oc.data import loader, remote
from medclip_oc.data.remote import ShardStream, Streamed, is_stream
from medclip_oc.data.shards import Sample
from medclip_oc.errors import InputError, WorkError
from medclip_oc.models.clip import Clip
from tests.support.fault_injection import ODD_TARS, read_odd_tar
from tests.support.reference import ONE, global_batches
from tests.support.tiny_dataset import OTHER_SAMPLES, OTHER_TOOLS, jpeg, write_pairs, write_tar

COUNTS = (7, 4, 9, 1, 6)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five shards, 27 pairs."""
    folder, first = tmp_path / "far", 0
    folder.mkdir()
    for number, count in enumerate(COUNTS):
        write_pairs(folder / f"s{number}.tar", range(first, first + count))
        first += count
    return folder


def command(folder: Path) -> str:
    """The shards; each opening of one leaves a line in `opened`."""
    return f"pipe:echo x >> {folder}/opened; cat {folder}/s{{0..4}}.tar"


def opened(folder: Path) -> int:
    """How many shards were opened since the last call."""
    file = folder / "opened"
    lines = len(file.read_text().splitlines()) if file.exists() else 0
    file.unlink(missing_ok=True)
    return lines


def far(folder: Path, **settings: Any) -> ShardStream:
    return ShardStream(command(folder), **({"seed": 1, "lanes": 3, "window": 4} | settings))


def batches(
    source: ShardStream, ranks: int, size: int, steps: int, start: int = 0
) -> list[list[str]]:
    """Keys of the global batches, in rank order."""
    found = global_batches(source, ranks, size=size, part=2, steps=steps, start=start)
    return [[pair.sample.key for pair in batch] for batch in found]


def keys_of(url: str) -> list[str]:
    return [sample.key for sample in remote.read_tar(url, None, [])]


def test_what_is_a_stream() -> None:
    for name in ("pipe:cat x", "http://h/{0..3}.tar", "s3://b/x.tar::s3://c/y.tar", ["hf://a/b"]):
        assert is_stream(name)
    for name in ("shards/rocov2", "/a/{0..3}.tar::b", ["x.tar"], "C:x"):
        assert not is_stream(name)
    with pytest.raises(InputError, match="can't be mixed"):
        is_stream("shards/rocov2::pipe:cat x")


def test_every_shard_comes_before_any_comes_again(folder: Path) -> None:
    def read(seed: int) -> list[Streamed]:
        return list(islice(far(folder, lanes=1, seed=seed).lane(0, 1), 3 * 27))

    pairs = read(1)
    keys = [[pair.sample.key for pair in pairs[n : n + 27]] for n in (0, 27, 54)]
    for epoch, own in enumerate(keys):
        part = pairs[27 * epoch : 27 * (epoch + 1)]
        assert {pair.epoch for pair in part} == {epoch}
        assert len({pair.index for pair in part}) == len(set(own)) == 27
    assert keys[0] != keys[1] != keys[2]
    orders = [[pair.index for pair in pairs[n : n + 27] if pair.index >> 32 == 2] for n in (0, 27)]
    assert orders[0] != orders[1]
    assert keys[0] != sorted(keys[0])
    assert read(1) == pairs
    assert [pair.sample for pair in read(2)] != [pair.sample for pair in pairs]


@pytest.mark.parametrize(
    ("lanes", "size", "steps", "ranks"),
    [(1, 12, 9, 3), (3, 12, 9, 6), (8, 12, 9, 2), (8, 3, 18, 3)],
)
def test_global_batches_are_the_same_at_any_world_size(
    folder: Path, lanes: int, size: int, steps: int, ranks: int
) -> None:
    """Also where ranks outnumber lanes or shards, and lanes the pairs of a batch."""
    whole = batches(far(folder, lanes=lanes), 1, size, steps)
    assert batches(far(folder, lanes=lanes), ranks, size, steps) == whole
    assert len({key for batch in whole for key in batch}) == 27


@pytest.mark.parametrize("lanes", [1, 3])
def test_resuming_reads_at_most_one_shard_of_a_lane_again(
    folder: Path, tmp_path: Path, lanes: int
) -> None:
    whole = batches(far(folder, lanes=lanes), 1, 6, 20)
    for done in (1, 7, 13):
        opened(folder)
        first = next(far(folder, lanes=lanes).shares(6 * done, 1, 6, range(6)))
        assert [pair.sample.key for pair in first] == whole[done]
        needed = {pair.index >> 32 for pair in first}
        assert opened(folder) <= len(needed) + lanes
        assert batches(far(folder, lanes=lanes), 2, 6, 5, start=6 * done) == whole[done : done + 5]
    shutil.rmtree(tmp_path / "cache")  # then it reads more, and comes to the same place
    assert batches(far(folder, lanes=lanes), 1, 6, 5, start=6 * 13) == whole[13:18]


def test_a_cache_folder_keeps_the_shards(folder: Path, tmp_path: Path) -> None:
    plain = batches(far(folder), 1, 6, 9)
    opened(folder)
    cache = tmp_path / "kept"
    assert batches(far(folder, cache=cache), 1, 6, 9) == plain
    assert opened(folder) == len(list(cache.iterdir())) == 5
    for tar in folder.glob("*.tar"):
        tar.unlink()
    assert batches(far(folder, cache=cache), 1, 6, 9) == plain


def test_samples_are_those_of_the_index(tmp_path: Path) -> None:
    """Any order, strays and incomplete entries passed over, and told."""
    content = OTHER_TOOLS | {"z.txt": b"\xff", "z.jpg": b"1"}
    url, passed_over = f"pipe:cat {write_tar(tmp_path / 'a.tar', content)}", list[str]()
    found = list(remote.read_tar(url, None, passed_over))
    assert found == OTHER_SAMPLES
    lines = [line.removeprefix(f"{url}: ").split(": 'utf")[0] for line in passed_over]
    assert lines == ["alone: no caption", "silent: no image", "z: caption unreadable"]


@pytest.mark.parametrize("name", ODD_TARS)
def test_odd_tars_are_read_as_by_position(name: str, tmp_path: Path) -> None:
    def read(path: Path) -> tuple[list[Sample], str]:
        passed_over = list[str]()
        found = list(remote.read_tar(f"pipe:cat {path}", None, passed_over))
        return found, f"{len(passed_over)} entries" if passed_over else ""

    read_odd_tar(name, tmp_path, read)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe:cat {0}/s0.tar; exit 3", "read to its end: .* ended with exit code 3$"),
        ("pipe:head -c 3000 {0}/s0.tar", "read to its end: ends at byte 2,560, without the zeros"),
        ("pipe:head -c 9216 {0}/s0.tar", "can't be read to its end"),
        ("pipe:gzip -c {0}/s0.tar | head -c 4000", "can't be read to its end"),
        ("pipe:echo no tar at all", "can't be read to its end"),
        ("file://{0}/absent.tar", "can't be opened"),
    ],
)
def test_what_fails_is_named(folder: Path, url: str, message: str) -> None:
    with pytest.raises(WorkError, match=message):
        keys_of(url.format(folder))
    for whole in (f"pipe:gzip -c {folder}/s1.tar", f"file://{folder}/s1.tar"):
        assert keys_of(whole) == [f"pair{n}" for n in range(7, 11)]


class Server(BaseHTTPRequestHandler):
    """A shard at /s0.tar; what else there is, has a fault."""

    tar, asked = b"", list[str]()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/silent":
            time.sleep(1)  # longer than is waited for
            return
        busy = self.path == "/once" and self.asked.count("/once") == 1
        self.send_response(int(self.path[1:]) if self.path[1:].isdigit() else 503 if busy else 200)
        self.send_header("Content-Length", str(len(self.tar)))
        self.end_headers()
        if not busy:
            self.wfile.write(self.tar[: 2000 if self.path == "/stalls" else None])
            self.wfile.flush()
            time.sleep(self.path == "/stalls")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("path", "tries", "message"),
    [
        ("s0.tar", 1, ""),
        ("once", 2, ""),
        ("500", 5, "can't be opened: HTTP Error 500: Internal Server Error$"),
        ("503", 5, "can't be opened: HTTP Error 503"),
        ("404", 1, "can't be opened: HTTP Error 404"),
        ("silent", 5, "can't be opened: timed out$"),
        ("stalls", 1, "can't be read to its end: timed out$"),
    ],
)
def test_a_web_server_that_fails_is_given_up(
    folder: Path, path: str, tries: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(remote, "_WAITS", (0.0,) * 4)
    monkeypatch.setattr(Server, "tar", (folder / "s0.tar").read_bytes())
    monkeypatch.setattr(Server, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{path}"
        if message:
            with pytest.raises(WorkError, match=message):
                keys_of(url)
        else:
            assert keys_of(url) == [f"pair{n}" for n in range(7)]
        assert Server.asked == [f"/{path}"] * tries
        server.shutdown()
    with pytest.raises(WorkError, match=r"can't be opened: .*refused"):
        keys_of(url)


def test_streams_without_a_pair_end(tmp_path: Path) -> None:
    write_tar(tmp_path / "s0.tar", {"README": b"no pair"})
    write_tar(tmp_path / "s1.tar", {"a.jpg": b"alone"})
    source = ShardStream(f"pipe:cat {tmp_path}/s{{0..1}}.tar", seed=1, lanes=8, window=4)
    with pytest.raises(WorkError, match="no readable pair, nor in any other shard"):
        batches(source, 1, 2, 1)


def test_shards_without_a_pair_are_passed_over(tmp_path: Path) -> None:
    """However many follow one another at the seam of two rounds."""
    for number in range(3):
        write_tar(tmp_path / f"s{number}.tar", {"README": b"no pair"})
    write_pairs(tmp_path / "s3.tar", range(2))
    for seed in range(8):
        source = ShardStream(f"pipe:cat {tmp_path}/s{{0..3}}.tar", seed=seed, lanes=1, window=4)
        assert [sorted(keys) for keys in batches(source, 1, 2, 6)] == [["pair0", "pair1"]] * 6


def config(where: str, **data: Any) -> Config:
    return Config(
        data=DataConfig(train=where, **({"workers": 0, "samples_per_epoch": 27} | data)),
        train=TrainConfig(global_batch_size=6, micro_batch_size=4),
    )


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_training_on_a_stream(folder: Path, clip: Clip) -> None:
    """Real batches, with workers and without, from the beginning and from the middle."""

    def run(start: int = 0, **data: Any) -> list[Any]:
        settings = config(command(folder), **data)
        pairs = loader.open_training(settings.data, 1, ONE)
        assert pairs.pairs_per_epoch == 27
        batches = loader.training_batches(pairs, clip, settings, ONE, print, steps=9, start=start)
        return list(batches)

    whole = run()
    assert len(whole) == 9
    assert whole[0]["images"].shape == (6, 3, 32, 32)
    with pytest.raises(InputError, match="6, but 25 pairs of a stream are done"):
        run(start=25)
    for again in (run(workers=2), [*whole[:4], *run(start=24)]):
        for batch, same in zip(whole, again, strict=True):
            assert all(batch[name].equal(same[name]) for name in batch)


def test_the_next_of_its_batch_replaces_a_bad_pair(tmp_path: Path, clip: Clip) -> None:
    names = [f"p{n}" for n in range(8)]
    members = {f"{n}.jpg": b"bad" if n == "p2" else jpeg(1) for n in names}
    members |= {f"{n}.said": b"x" for n in names} | {"q.said": b"no image"}
    write_tar(tmp_path / "s.tar", dict(sorted(members.items())))
    how: dict[str, Any] = {"samples_per_epoch": 8, "max_bad_share": 0.5, "caption_key": "said"}
    settings = config(f"pipe:cat {tmp_path}/s.tar", **how)
    settings.train.global_batch_size = settings.train.micro_batch_size = 8
    pairs = loader.open_training(settings.data, 1, ONE)
    log: list[str] = []
    batches = loader.training_batches(pairs, clip, settings, ONE, log.append, steps=1)
    rows = [index % 2**32 for index in next(iter(batches))["index"].tolist()]
    assert sorted({*rows, 2}) == list(range(8))
    assert 2 not in rows
    assert sorted(line.split(".tar: ")[1].split(" (")[0] for line in log) == [
        "p2: undecodable",
        "q: no image",
    ]
    settings.data.caption_key = "nosuch"
    with pytest.raises(
        InputError, match=r"s\.tar: data\.caption_key: no pair has KEY\.nosuch, nor"
    ):
        next(loader.open_training(settings.data, 1, ONE).order.lane(0, 1))
