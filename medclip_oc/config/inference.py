"""Settings of the commands that use a trained model: zeroshot, embed, export, app. No torch."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..errors import InputError
from . import checks
from .checks import Bound, Count, Natural, Settings
from .evaluation import ModelSource


@dataclass(kw_only=True)
class ModelChoice(ModelSource):
    """Which model works, and how."""

    workers: Natural | None = None
    """Processes that read and decode images. 0: this one. null: one per core, at most 8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is None and self.checkpoint is None:
            raise InputError("--checkpoint: required, unless --model names a model of open_clip")


@dataclass(kw_only=True)
class ZeroshotConfig(ModelChoice):
    """Rank candidate captions for images, best first, or search an index."""

    reads = """checkpoint model pretrained images split texts texts_file text_column label_column
        templates labels search search_image index"""
    writes = "format top figures"

    images: list[str] = field(default_factory=list)
    """Files, folders (with those inside), globs, shard folders (see --split), tars."""
    split: checks.Split | None = None
    """Split of a shard folder. null: test."""
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
    threshold: Annotated[float, Bound("a cosine, -1 to 1", lambda v: -1 <= v <= 1)] | None = None
    """Cosine that a text must exceed; "none of these" is then a candidate, always at this one."""
    labels: str | None = None
    """Table with the true text of each image (columns image or id, and label): adds accuracy,
    balanced accuracy, AUROC and the confusion matrix."""
    figures: checks.JsonFile | None = None
    """Write these to this file too (.json)."""
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
    format: Literal["table", "json", "jsonl", "csv"] = "table"
    """Of the rows: image, rank, text, cosine, probability, margin; of a search query, rank, id,
    score, caption, shard, position."""

    def __post_init__(self) -> None:
        super().__post_init__()
        searching = self.search or self.search_image
        ranking = ("images", "texts", "texts_file", "templates", "threshold", "labels", "figures")
        if self.index is None and searching:
            raise InputError("--index: required for a search; medclip_oc.embed makes one")
        if self.index is not None:
            if not searching:
                raise InputError("--index: give --search TEXT or --search-image FILE with it")
            for name in ranking:
                if getattr(self, name) not in (None, []):
                    raise InputError(f"{self.option(name)}: ranks captions; not for a search")
        elif not self.images:
            raise InputError("--images: give at least one")
        elif not self.texts and not self.texts_file:
            raise InputError("--texts: give at least one, or --texts-file")
        elif self.figures is not None and self.labels is None:
            raise InputError("--figures: there are none without --labels")


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
        of_pairs = ["data", "split", "caption_key", "labels", "prompts"]
        of_models = ["checkpoint", "images", *["quantize"] * (self.to == "onnx")]
        own = of_pairs if self.to == "clip_benchmark" else of_models
        if getattr(self, own[0]) is None:
            raise InputError(f"--{own[0]}: required for --to {self.to}")
        for name in {*of_pairs, *of_models, "quantize"} - {*own}:
            if getattr(self, name):
                raise InputError(f"{self.option(name)}: of no use to --to {self.to}")
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
