"""A split of pairs as LAION's clip_benchmark reads it: its `build_wds_dataset`, release 1.6.2.

SPLIT/nshards.txt, SPLIT/0.tar   ID.jpg, and ID.txt, a caption a line; or ID.cls, its class
dataset_type.txt                 "retrieval", where there are captions
classnames.txt, zeroshot_classification_templates.txt   first names, and what they are put into
prompts.json                     all phrasings of the classes, for --custom_template_file
"""

import json
from pathlib import Path

from webdataset import ShardWriter

from ..config.inference import ExportConfig
from ..data.index import CAPTION
from ..data.shards import ShardSet
from ..errors import InputError
from ..inference import labels, prompt_sets
from ..inference.image_inputs import ImageSet


def write(settings: ExportConfig, folder: Path) -> str:
    """Write into an empty folder; returns what is there, in words. InputError: see `ShardSet.open`,
    `prompt_sets.load`, `labels.Labels`; or several classes may be true of an image.
    """
    split, by_class, captions = settings.split or "test", settings.labels is not None, 0
    shards = ShardSet.open(settings.data or "", split, settings.caption_key or CAPTION, by_class)
    truth = dict.fromkeys(range(len(shards)), 0)
    if by_class:
        truth = _write_classes(settings, shards, folder)
    else:
        (folder / "dataset_type.txt").write_text("retrieval\n", "utf-8")
    (folder / split).mkdir()
    pattern, keys = f"{folder}/{split}/".replace("%", "%%") + "%d.tar", shards.ids()
    # at most as many as its own converter has, and one tar or more for each of its four workers
    per_tar = min(10_000, max(1, len(truth) // 4))
    with ShardWriter(pattern, per_tar, verbose=0, mtime=0) as tars:
        for n, label in sorted(truth.items()):
            sample = shards.read(n)
            texts = [_line(text) for text in (sample.caption, *sample.further)]
            captions += len(texts)
            answer = {"cls": label} if by_class else {"txt": "\n".join(texts)}
            tars.write({"__key__": keys[n], sample.extension: sample.image, **answer})
        (folder / split / "nshards.txt").write_text(f"{tars.shard}\n", "utf-8")
    answers = f"{len({*truth.values()})} classes" if by_class else f"{captions:,} captions"
    content = f"{len(truth):,} of {len(keys):,} images, {answers}"
    about = f"{content}, for clip_benchmark: see docs/evaluation.md of medclip_oc\n"
    (folder / "README.md").write_text(about, "utf-8")
    return content


def _write_classes(settings: ExportConfig, shards: ShardSet, folder: Path) -> dict[int, int]:
    """Write names and phrasings; returns the class of each position that has one."""
    prompts = prompt_sets.load(settings.prompts or "")
    phrasings = {_line(each.names[0]): [*map(_line, each.positive)] for each in prompts.classes}
    if prompts.multi_label or len(phrasings) < len(prompts.classes):
        problem = "several may be true of an image" if prompts.multi_label else "two share a name"
        raise InputError(f"--prompts {settings.prompts}: its classes: {problem}; not exported")
    templates = [_line(form).replace("{}", "{c}") for form in prompts.templates]
    lines = {"classnames": phrasings, "zeroshot_classification_templates": templates}
    for file, texts in lines.items():
        (folder / f"{file}.txt").write_text("\n".join(texts) + "\n", "utf-8")
    own = {Path(settings.out).resolve().name: phrasings}  # by the name of the data set
    (folder / "prompts.json").write_text(json.dumps(own, indent=1), "utf-8")
    images = ImageSet([(shards, n) for n in range(len(shards))])
    table = labels.read("--labels", settings.labels or "", prompts.classes)
    known = labels.Labels(table, images, single=True)
    return dict(zip(known.positions.tolist(), known.truth.argmax(1).tolist(), strict=True))


def _line(text: str) -> str:
    """A text whose line breaks, of any kind that Python knows, are blanks."""
    return " ".join(text.splitlines()).strip()
