"""Which shards a word names, and where tars of other tools have their captions."""

import json
from pathlib import Path
from typing import Any

import pytest

from medclip_oc.data import remote
from medclip_oc.data.shards import ShardSet
from medclip_oc.errors import InputError
from tests.support.tiny_dataset import write_tar


def entry(key: str, ending: str = "txt", **facts: Any) -> dict[str, bytes]:
    text = json.dumps(facts) if facts else f"words {key}"
    return {f"{key}.jpg": b"image", f"{key}.{ending}": text.encode()}


A, B = entry("a"), entry("b")
LONE = {"a.jpg": b"image", "b.jpg": b"image"}
FOLDERS: list[Any] = [
    # tars, the split asked for, data.caption_key, and the captions, or what is said
    ({"00000": A, "00001": B}, "train", "caption", ["words a", "words b"]),
    ({"train-0": A, "val-0": B}, "valid", "caption", ["words b"]),
    ({"train/0": A, "validation/0": B}, "train", "caption", ["words a"]),
    ({"trainees": A}, "test", "caption", ["words a"]),
    ({"train-0": A, "val-0": B}, "test", "caption", "no split 'test': .* there are: train, val"),
    ({}, "train", "caption", "no index.json, no tars; a source. make_shards packs it"),
    ({"0": entry("a", "json", caption="x")}, "train", "caption", ["x"]),
    ({"0": entry("a", "json", text="x") | B}, "train", "text", ["x", "words b"]),
    ({"0": entry("a", "said") | entry("b", "Said")}, "train", "said", ["words a", "words b"]),
    (
        {"0": entry("a", "said", x=1) | {"a.txt": b"x"} | B},
        "train",
        "said",
        ['{"x": 1}', "words b"],
    ),
    ({"0": entry("a", "json", said="y") | {"a.txt": b"x"}}, "train", "said", ["y"]),
    ({"0": entry("a", "json", said="y") | {"a.txt": b"x"}}, "train", "caption", ["x"]),
    ({"0": entry("a", "json", caption=5)}, "train", "caption", "1 .json; .* data.caption_key"),
    (
        {"0": {"a.dcm": b"", "a.txt": b"x"}},
        "train",
        "caption",
        "1 .dcm, .*unpack and pack other images",
    ),
    (
        {"0": {"a.jpg": b"x"}, "1": {"a.txt": b"x"}},
        "train",
        "caption",
        "jpg and in another tar 1 .txt",
    ),
    ({"0": LONE}, "train", "caption", "no readable pair among 2 .jpg;"),
    ({"0": LONE | entry("c", "json", caption="x")}, "train", None, ["", "", "x"]),
    ({"0": LONE | {"a.txt": b"x", "b.txt": b"y"}}, "train", "caption", "2 .txt; .* --sort=name"),
    ({"0": entry("1.2.3") | entry("1.2.4")}, "train", "caption", "1 .2.3.jpg, .* without a dot"),
]


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_of_another_tools_tars(case: Any, tmp_path: Path, capsys: Any) -> None:
    (tars, split, key, expected), streamed = case, []
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
