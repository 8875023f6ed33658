"""Settings of the commands that use a trained model: zeroshot, embed, export, app.

As in `config`: no torch, and a field's help is the docstring under it.
"""

from dataclasses import dataclass, field
from typing import Literal

from ..errors import InputError
from .schema import Device, Precision, _at_least, _require


@dataclass(kw_only=True)
class ModelChoice:
    """Which model works, and how."""

    checkpoint: str | None = None
    """A checkpoint written by training."""
    model: str | None = None
    """In place of a checkpoint: an open_clip name, `hf-hub:ORG/NAME` or `local-dir:FOLDER`."""
    pretrained: str | None = None
    """Weights for --model: an open_clip tag, or a file."""
    batch_size: int = 64
    """Images or texts embedded at once."""
    workers: int | None = None
    """Processes that read and decode images. 0: none but this one. None: one per core, at most
    8."""
    precision: Precision = "fp32"
    """bf16 (CPU and CUDA), fp16 (CUDA), fp32."""
    device: Device = "auto"
    """auto: CUDA where there is a GPU, else the CPU."""

    def __post_init__(self) -> None:
        _at_least(1, "--", self, "batch_size")
        _at_least(0, "--", self, "workers")
        if self.model is None:
            if self.checkpoint is None:
                raise InputError(
                    "--checkpoint: required, unless --model names a model of open_clip"
                )
            _require(
                self.pretrained is None, "--pretrained", self.pretrained, "used without --model"
            )
            return
        if self.checkpoint is not None:
            raise InputError(
                f"--model {self.model}: {self.checkpoint} names its own model; give one of the two"
            )
        if self.pretrained is None and not self.model.startswith(("hf-hub:", "local-dir:")):
            raise InputError(
                f"--pretrained: required with --model {self.model}: random weights rank by luck"
            )


@dataclass(kw_only=True)
class ZeroshotConfig(ModelChoice):
    """Rank captions for images, or search an index."""

    images: list[str] = field(default_factory=list)
    """Files, folders (with those inside), globs, shard folders (see --split), tars."""
    split: Literal["train", "valid", "test"] | None = None
    """Split of a shard folder. None: test."""
    texts: list[str] = field(default_factory=list)
    """Candidate captions."""
    texts_file: str | None = None
    """More of them: .txt (one a line), .csv, .tsv, .jsonl or .parquet; `-` for lines on standard
    input."""
    text_column: str = "text|caption"
    """Column of a table of texts; of several names the first that is there."""
    label_column: str | None = None
    """Column of a table of texts that names a class. The texts of a class are then one candidate,
    the mean of their features. None: `label`, if the table has one."""
    templates: str | None = None
    """Put each text (or label) into these, and take the mean: `radiology`, built in, or a file
    with one per line, {} where the text goes."""
    threshold: float | None = None
    """Cosine that a text must exceed. "none of these" is then a further candidate, whose cosine is
    this one for every image."""
    labels: str | None = None
    """Table with the true text of each image (columns image or id, and label): adds accuracy,
    balanced accuracy, AUROC and the confusion matrix."""
    figures: str | None = None
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
    top: int | None = None
    """Only the K best of each image or query. None: all texts; 10 of an index."""
    format: Literal["table", "json", "jsonl", "csv"] = "table"
    """Rows have the fields image, rank, text, cosine, probability, margin; of a search query, rank,
    id, score, caption, shard, position."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(1, "--", self, "top")
        if self.index is not None or self.search or self.search_image:
            self._check_search()
            return
        for option in ("images", "texts"):
            if not getattr(self, option) and not (option == "texts" and self.texts_file):
                more = ", or --texts-file" if option == "texts" else ""
                raise InputError(f"--{option}: give at least one{more}")
        if self.figures is not None and self.labels is None:
            raise InputError("--figures: there are none without --labels")
        named = self.figures is None or self.figures.endswith(".json")
        _require(named, "--figures", self.figures, "a file name that ends in .json")
        limit = self.threshold
        _require(limit is None or -1 <= limit <= 1, "--threshold", limit, "a cosine, from -1 to 1")

    def _check_search(self) -> None:
        if self.index is None:
            raise InputError("--index: required for a search; medclip_oc.embed makes one")
        if not self.search and not self.search_image:
            raise InputError("--index: give --search TEXT or --search-image FILE with it")
        ranking = ("images", "texts", "texts_file", "templates", "threshold", "labels", "figures")
        for option in ranking:
            if getattr(self, option) not in (None, []):
                name = option.replace("_", "-")
                raise InputError(f"--{name}: ranks captions; it doesn't go with a search")


@dataclass(kw_only=True)
class EmbedConfig(ModelChoice):
    """Features of a set of pairs, as an index to search."""

    data: str | list[str]
    """Shard folder, brace pattern, glob or list of tars."""
    split: Literal["train", "valid", "test"] | None = None
    """Split of a shard folder. None: test."""
    out: str
    """The index: a new folder."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of the features. float16 halves the size; cosines move by some 1e-4."""
    faiss: bool = False
    """Add lists for approximate search (`--engine faiss`), worth it from a million pairs on."""
    overwrite: bool = False
    """Replace an index that is there."""


@dataclass(kw_only=True)
class ExportConfig:
    """A checkpoint for other programs."""

    checkpoint: str
    """A checkpoint written by training."""
    to: Literal["open_clip", "onnx", "hf"]
    """open_clip: a folder for `create_model_from_pretrained("local-dir:...")`. onnx: a graph per
    tower. hf: a folder for `transformers.CLIPModel`, where the architecture is CLIP's own."""
    out: str
    """A new folder."""
    images: list[str] = field(default_factory=list)
    """Images to compare features on. None given: pairs that the run validated on."""
    pairs: int = 8
    """How many are compared."""
    overwrite: bool = False
    """Replace an earlier export."""

    def __post_init__(self) -> None:
        _at_least(2, "--", self, "pairs")


@dataclass(kw_only=True)
class AppConfig(ModelChoice):
    """A local page."""

    index: str | None = None
    """An index to search: a folder written by medclip_oc.embed."""
    host: str = "127.0.0.1"
    """Address to serve at. 0.0.0.0 lets everybody in the network in, without a password."""
    port: int = 7860
    """Port to serve at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(1 <= self.port <= 65535, "--port", self.port, "from 1 to 65535")
