"""Which shards a word names, and where tars of other tools have their captions."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from medclip_oc.config.checks import Split
from medclip_oc.data import remote
from medclip_oc.data.shards import Sample, ShardSet
from medclip_oc.errors import InputError
from tests.support.tiny_dataset import write_tar


def entry(key: str, ending: str = "txt", **facts: Any) -> dict[str, bytes]:
    text = json.dumps(facts) if facts else f"words {key}"
    return {f"{key}.jpg": b"image", f"{key}.{ending}": text.encode()}


A, B = entry("a"), entry("b")
LONE = {"a.jpg": b"image", "b.jpg": b"image"}


class Folder(NamedTuple):
    """Tars, and the captions that are read, or what is said."""

    tars: dict[str, dict[str, bytes]]
    expected: list[str] | str
    key: str | None = "caption"  # data.caption_key
    split: Split = "train"


TEXT = {"a.txt": b"x"}
FOLDERS = [
    Folder({"00000": A, "00001": B}, ["words a", "words b"]),
    Folder({"train-0": A, "val-0": B}, ["words b"], split="valid"),
    Folder({"train/0": A, "validation/0": B}, ["words a"]),
    Folder({"trainees": A}, ["words a"], split="test"),
    Folder({"train-0": A, "val-0": B}, "no split 'test': .* there are: train, val", split="test"),
    Folder({}, "no index.json, no tars; a source. make_shards packs it"),
    Folder({"0": entry("a", "json", caption="x")}, ["x"]),
    Folder({"0": entry("a", "json", text="x") | B}, ["x", "words b"], "text"),
    Folder({"0": entry("a", "said") | entry("b", "Said")}, ["words a", "words b"], "said"),
    Folder({"0": entry("a", "said", x=1) | TEXT | B}, ['{"x": 1}', "words b"], "said"),
    Folder({"0": entry("a", "json", said="y") | TEXT}, ["y"], "said"),
    Folder({"0": entry("a", "json", said="y") | TEXT}, ["x"]),
    Folder({"0": entry("a", "json", caption=5)}, "1 .json; .* data.caption_key"),
    Folder({"0": {"a.dcm": b"", **TEXT}}, "1 .dcm, .*unpack and pack other images"),
    Folder({"0": {"a.jpg": b"x"}, "1": TEXT}, "jpg and in another tar 1 .txt"),
    Folder({"0": LONE}, "no readable pair among 2 .jpg;"),
    Folder({"0": LONE | entry("c", "json", caption="x")}, ["", "", "x"], None),
    Folder({"0": LONE | {"a.txt": b"x", "b.txt": b"y"}}, "2 .txt; .* --sort=name"),
    Folder({"0": entry("1.2.3") | entry("1.2.4")}, "1 .2.3.jpg, .* without a dot"),
]


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_of_another_tools_tars(case: Folder, tmp_path: Path, capsys: Any) -> None:
    (tars, expected, key, split), streamed = case, list[Sample]()
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    for name, members in tars.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tar = write_tar(tmp_path / f"{name}.tar", members)
        streamed += remote.read_tar(f"pipe:cat {tar}", None, [], key or "caption")
    for _ in ("walked through", "by what was kept"):
        if isinstance(expected, str):
            with pytest.raises(InputError, match=expected) as caught:
                ShardSet.open(str(tmp_path), split, key or "caption", bare=key is None)
            assert len(str(caught.value).replace(str(tmp_path), "")) < 260
            continue
        shards = ShardSet.open(str(tmp_path), split, key or "caption", bare=key is None)
        samples = [shards.read(n) for n in range(len(shards))]
        assert [sample.caption for sample in samples] == expected
        assert [one for one in samples if one.caption] == [s for s in streamed if s in samples]
        assert f"of its {len(tars)} tars are read for '{split}'" in capsys.readouterr().err
