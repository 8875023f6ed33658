"""A split of pairs as LAION's clip_benchmark reads it: its `build_wds_dataset`, release 1.6.2.

dataset_type.txt                  "retrieval"
SPLIT/nshards.txt, SPLIT/0.tar    ID.jpg as it lies in the shards, and ID.txt, a caption a line
"""

from pathlib import Path

from webdataset import ShardWriter

from ..config.inference import ExportConfig
from ..data.index import CAPTION
from ..data.shards import ShardSet
from ..runtime.progress import Progress

_MOST_PER_TAR = 10_000  # as clip_benchmark's own converter has it
_WORKERS = 4  # that clip_benchmark starts: each wants a tar
_README = """# {name}: {content}, for clip_benchmark

From the folder in which {name} lies:

```sh
pip install clip_benchmark requests   # it imports requests, and doesn't ask for it
clip_benchmark eval --dataset wds/{name} --dataset_root {name} --split {split} {task} \\
    --no_amp --model ViT-B-32 --pretrained openai   # or --model local-dir:FOLDER --pretrained ""
```
"""


def write(settings: ExportConfig, folder: Path) -> str:
    """Write into an empty folder; returns what is there, in words. InputError: see `ShardSet`."""
    assert settings.data is not None
    split = settings.split or "test"
    shards = ShardSet.open(settings.data, split, settings.caption_key or CAPTION)
    (folder / split).mkdir()
    captions = 0
    pattern = f"{folder}/{split}/".replace("%", "%%") + "%d.tar"
    per_tar = min(_MOST_PER_TAR, max(1, len(shards) // _WORKERS))
    with (
        ShardWriter(pattern, per_tar, verbose=0, mtime=0) as tars,
        Progress(len(shards), "pairs", "export") as progress,
    ):
        for position, key in enumerate(shards.ids()):
            sample = shards.read(position)
            texts = [_line(text) for text in (sample.caption, *sample.further)]
            tars.write({"__key__": key, sample.extension: sample.image, "txt": "\n".join(texts)})
            captions += len(texts)
            progress.update()
        (folder / split / "nshards.txt").write_text(f"{tars.shard}\n", "utf-8")
    content, task = f"{len(shards):,} images, {captions:,} captions", "zeroshot_retrieval"
    (folder / "dataset_type.txt").write_text("retrieval\n", "utf-8")
    facts = {"name": Path(settings.out).resolve().name, "content": content, "split": split}
    task = f"\\\n    --task {task} --recall_k 1 5 10"
    (folder / "README.md").write_text(_README.format(**facts, task=task), "utf-8")
    return content


def _line(text: str) -> str:
    """A text whose line breaks, of any kind that Python knows, are blanks."""
    return " ".join(text.splitlines()).strip()
