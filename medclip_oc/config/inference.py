"""Settings of the commands that use a trained model: zeroshot, embed, export, app. No torch."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..errors import InputError
from . import checks
from .checks import Bound, Count, Natural, Settings, option
from .evaluation import ModelSource, NpzFile, Uncertain


@dataclass(kw_only=True)
class ModelChoice(ModelSource):
    """Which model works, and how."""

    workers: Natural | None = None
    """Processes that read and decode images. 0: this one. null: one per core, at most 8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is None and self.checkpoint is None:
            raise InputError("--checkpoint: required, unless --model names a model of open_clip")


_NEEDS = {"figures": "labels", "uncertain": "labels", "multi_label": "prompts"}
_NEEDS |= {"threshold_labels": "labels multi_label", "threshold_images": "threshold_labels"}
_NEEDS |= {"search": "index", "search_image": "index", "explain_top": "explain"}
_EXCLUDES = {
    "index": "images features_in texts texts_file templates prompts threshold labels",
    "prompts": "texts texts_file templates",
    "multi_label": "threshold top",
    "features_in": "images split",
    "explain": "index features_in multi_label threshold",
}


@dataclass(kw_only=True)
class ZeroshotConfig(ModelChoice):
    """Rank candidate captions for images, best first, or search an index."""

    reads = """checkpoint model pretrained images split features_in texts texts_file text_column
        label_column templates prompts labels threshold_labels threshold_images search search_image
        index"""
    writes = "format top figures explain explain_top"

    images: list[str] = field(default_factory=list)
    """Files, folders (with those inside), globs, shard folders (see --split), tars."""
    split: checks.Split | None = None
    """Split of a shard folder. null: test."""
    features_in: NpzFile | None = None
    """In place of --images: their features, from evaluate --features-out with the same model."""
    texts: list[str] = field(default_factory=list)
    """Candidate captions."""
    texts_file: str | None = None
    """More: .txt (one a line), .csv, .tsv, .jsonl, .parquet; `-`: lines on standard input."""
    text_column: str = "text|caption"
    """Column of a table of texts; of several names the first that is there."""
    label_column: str | None = None
    """Column of a class, whose texts are one candidate, their mean. null: `label`, if there."""
    templates: str | None = None
    """Put each text (or label) into these, and take the mean: `radiology`, built in, or a file
    with one per line, {} where the text goes."""
    prompts: str | None = None
    """In place of texts: a prompt set, by name, or a FILE.yaml of your own."""
    list_prompts: bool = False
    """Print the prompt sets, or all phrasings of that of --prompts."""
    multi_label: bool = False
    """Judge each class of --prompts by itself, by its positive and its negative phrasings."""
    threshold: Annotated[float, Bound("a cosine, -1 to 1", lambda v: -1 <= v <= 1)] | None = None
    """Cosine that a text must exceed; "none of these" is then a candidate, always at this one."""
    labels: str | None = None
    """Table with what is true of each image: columns image or id, and label (a|b for several), or
    one of 0 and 1 for each class. Adds accuracy, AUROC and others, with intervals."""
    uncertain: Uncertain | None = None
    """What -1 in --labels is taken for. null: unknown (ignore)."""
    threshold_labels: str | None = None
    """Labels of other images, to choose each finding's threshold on (of the greatest MCC): adds
    balanced accuracy, F1, MCC."""
    threshold_images: list[str] = field(default_factory=list)
    """These images; of a shard folder the split valid. None given: they are among --images."""
    min_positives: Count = 1
    """Positives that a finding needs to count in the macro mean."""
    interval_draws: Natural = 1000
    """Bootstrap draws behind each interval. 0: no intervals."""
    seed: Natural = 0
    """Seed of these draws."""
    figures: checks.JsonFile | None = None
    """Write these to this file, beside that in RUN/evaluations of a run's checkpoint."""
    search: list[str] = field(default_factory=list)
    """Texts to search an index for, in place of --images and --texts."""
    search_image: list[str] = field(default_factory=list)
    """Images to search it for."""
    index: str | None = None
    """The index: a folder written by medclip_oc.embed."""
    find: Literal["images", "captions"] = "images"
    """What is searched: the index's images, or its captions."""
    engine: Literal["exact", "faiss"] = "exact"
    """exact: every pair is looked at. faiss: for millions; needs an index made with --faiss."""
    top: Count | None = None
    """Only the K best of each image or query. null: all texts; 10 of an index."""
    explain: str | None = None
    """New or empty folder for maps of the best text of each image: STEM-1.png and STEM-1.npy."""
    explain_top: Count | None = None
    """Maps of the K best texts, STEM-1 to STEM-K. null: 1."""
    format: Literal["table", "json", "jsonl", "csv"] = "table"
    """Of the rows: image, rank, text, cosine, probability, margin; with --multi-label image,
    finding, probability, cosine_positive, cosine_negative; of a search query, rank, id, score,
    caption, shard, position."""

    def __post_init__(self) -> None:
        if self.list_prompts:
            return
        super().__post_init__()
        given = {k for k, v in vars(self).items() if v not in (None, []) and v is not False}
        for key, others in _NEEDS.items():
            if key in given and (lacking := {*others.split()} - given):
                raise InputError(f"{option(key)}: not without {option(min(lacking))}")
        for key, others in _EXCLUDES.items():
            if key in given and (both := given & {*others.split()}):
                raise InputError(f"{option(min(both))}: not with {option(key)}")
        if "index" in given:
            if not given & {"search", "search_image"}:
                raise InputError("--index: give --search TEXT or --search-image FILE with it")
        elif not given & {"images", "features_in"}:
            raise InputError("--images: give at least one")
        elif not given & {"texts", "texts_file", "prompts"}:
            raise InputError("--texts: give at least one, or --texts-file, or --prompts")


@dataclass(kw_only=True)
class EmbedConfig(ModelChoice):
    """Features of a set of pairs, as an index for zeroshot --search."""

    reads = "checkpoint model pretrained data split caption_key"
    writes = "out dtype faiss overwrite"

    data: str | list[str]
    """Shard folder, brace pattern, glob or list of tars."""
    split: checks.Split | None = None
    """Split of a shard folder. null: test."""
    caption_key: str | None = None
    """Where captions lie, see data.caption_key of training. null: where those of the run lay."""
    out: str
    """The index: a new folder."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of the features. float16 halves the size; cosines move by some 1e-4."""
    faiss: bool = False
    """Add lists for approximate search (`--engine faiss`), worth it from a million pairs on."""
    overwrite: bool = False
    """Replace an index that is there."""


@dataclass(kw_only=True)
class ExportConfig(Settings):
    """A checkpoint as a folder for open_clip, ONNX or Hugging Face transformers; or pairs for
    clip_benchmark.
    """

    reads = "checkpoint images data split caption_key labels prompts"
    writes = "to out quantize overwrite"

    checkpoint: str | None = None
    """A checkpoint written by training."""
    to: Literal["open_clip", "onnx", "hf", "adapters", "clip_benchmark"]
    """For open_clip (`local-dir:`), ONNX, transformers (hf: CLIP's towers); LoRA's adapters; or, in
    place of a checkpoint, the pairs of --data for LAION's clip_benchmark."""
    out: str
    """A new folder."""
    images: list[str] = field(default_factory=list)
    """Images to compare features on. None given: pairs that the run validated on."""
    pairs: Annotated[int, Bound("at least 2", lambda value: value >= 2)] = 8
    """How many are compared."""
    data: str | list[str] | None = None
    """Of clip_benchmark: shard folder, brace pattern, glob or list of tars."""
    split: checks.Split | None = None
    """Split of a shard folder. null: test."""
    caption_key: str | None = None
    """Where captions lie, see data.caption_key of training."""
    labels: str | None = None
    """Table of each image's class: clip_benchmark then classifies, in place of retrieval."""
    prompts: str | None = None
    """Names and templates of the classes: a set of `zeroshot --list-prompts`, or a FILE.yaml."""
    quantize: Literal["int8"] | None = None
    """Of ONNX: graphs with weights of 8 bits beside the others; the card says how close."""
    overwrite: bool = False
    """Replace an earlier export."""

    def __post_init__(self) -> None:
        super().__post_init__()
        own = ["checkpoint", "images", *["quantize"] * (self.to == "onnx")]
        if self.to == "clip_benchmark":
            own = ["data", "split", "caption_key", "labels", "prompts"]
        if getattr(self, own[0]) is None:
            raise InputError(f"--{own[0]}: required for --to {self.to}")
        given = [name for name in (*self.reads.split(), "quantize") if getattr(self, name)]
        if unused := [name for name in given if name not in own]:
            raise InputError(f"{self.option(unused[0])}: of no use to --to {self.to}")
        if (self.labels is None) != (self.prompts is None):
            raise InputError("--labels, --prompts: one needs the other")


@dataclass(kw_only=True)
class AppConfig(ModelChoice):
    """A local page that ranks captions and searches an index."""

    reads = "checkpoint model pretrained index"

    index: str | None = None
    """An index to search: a folder written by medclip_oc.embed."""
    host: Annotated[str, Bound("a name or IPv4 address", re.compile(r"[\w.-]+").fullmatch)] = (
        "127.0.0.1"
    )
    """Address to serve at, and the name to be asked for. 0.0.0.0 lets everybody in the network in,
    without a password, by this machine's own name or address."""
    port: Annotated[int, Bound("from 1 to 65535", lambda value: 1 <= value <= 65535)] = 7860
    """Port to serve at."""
