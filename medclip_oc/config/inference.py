"""Settings of the commands that use a trained model: zeroshot, embed, export, app.

As in `config`: no torch, and a field's help is the docstring under it.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..errors import InputError
from .checks import AtLeastTwo, Bound, Count, Device, JsonFile, Natural, Precision, Settings, Split

PORT = Bound("from 1 to 65535", lambda value: 1 <= value <= 65535)
COSINE = Bound("a cosine, from -1 to 1", lambda value: -1 <= value <= 1)


@dataclass(kw_only=True)
class ModelChoice(Settings):
    """Which model works, and how."""

    checkpoint: str | None = None
    """A checkpoint written by training."""
    model: str | None = None
    """In place of a checkpoint: an open_clip name, `hf-hub:ORG/NAME` or `local-dir:FOLDER`."""
    pretrained: str | None = None
    """Weights for --model: an open_clip tag, or a file."""
    batch_size: Count = 64
    """Images or texts embedded at once."""
    workers: Natural | None = None
    """Processes that read and decode images. 0: none but this one. null: one per core, at most
    8."""
    precision: Precision = "fp32"
    """bf16 (CPU and CUDA), fp16 (CUDA), fp32."""
    device: Device = "auto"
    """auto: CUDA where there is a GPU, else the CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is None:
            if self.checkpoint is None:
                raise InputError(
                    "--checkpoint: required, unless --model names a model of open_clip"
                )
            self.require(self.pretrained is None, "pretrained", "used without --model")
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

    reads = (
        "checkpoint",
        "model",
        "pretrained",
        "images",
        "split",
        "texts",
        "texts_file",
        "text_column",
        "label_column",
        "templates",
        "labels",
        "search",
        "search_image",
        "index",
    )
    writes = ("format", "top", "figures")

    images: list[str] = field(default_factory=list)
    """Files, folders (with those inside), globs, shard folders (see --split), tars."""
    split: Split | None = None
    """Split of a shard folder. null: test."""
    texts: list[str] = field(default_factory=list)
    """Candidate captions."""
    texts_file: str | None = None
    """More of them: .txt (one a line), .csv, .tsv, .jsonl or .parquet; `-` for lines on standard
    input."""
    text_column: str = "text|caption"
    """Column of a table of texts; of several names the first that is there."""
    label_column: str | None = None
    """Column of a table of texts that names a class. The texts of a class are then one candidate,
    the mean of their features. null: `label`, if the table has one."""
    templates: str | None = None
    """Put each text (or label) into these, and take the mean: `radiology`, built in, or a file
    with one per line, {} where the text goes."""
    threshold: Annotated[float, COSINE] | None = None
    """Cosine that a text must exceed. "none of these" is then a further candidate, whose cosine is
    this one for every image."""
    labels: str | None = None
    """Table with the true text of each image (columns image or id, and label): adds accuracy,
    balanced accuracy, AUROC and the confusion matrix."""
    figures: JsonFile | None = None
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
    """Rows have the fields image, rank, text, cosine, probability, margin; of a search query, rank,
    id, score, caption, shard, position."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.index is not None or self.search or self.search_image:
            self._check_search()
            return
        if not self.images:
            raise InputError("--images: give at least one")
        if not self.texts and not self.texts_file:
            raise InputError("--texts: give at least one, or --texts-file")
        if self.figures is not None and self.labels is None:
            raise InputError("--figures: there are none without --labels")

    def _check_search(self) -> None:
        if self.index is None:
            raise InputError("--index: required for a search; medclip_oc.embed makes one")
        if not self.search and not self.search_image:
            raise InputError("--index: give --search TEXT or --search-image FILE with it")
        ranking = ("images", "texts", "texts_file", "templates", "threshold", "labels", "figures")
        for name in ranking:
            if getattr(self, name) not in (None, []):
                raise InputError(f"{self.option(name)}: ranks captions; not for a search")


@dataclass(kw_only=True)
class EmbedConfig(ModelChoice):
    """Features of a set of pairs, as an index to search."""

    reads = ("checkpoint", "model", "pretrained", "data", "split")
    writes = ("out", "dtype", "faiss", "overwrite")

    data: str | list[str]
    """Shard folder, brace pattern, glob or list of tars."""
    split: Split | None = None
    """Split of a shard folder. null: test."""
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
    """A checkpoint for other programs."""

    reads = ("checkpoint", "images")
    writes = ("to", "out", "overwrite")

    checkpoint: str
    """A checkpoint written by training."""
    to: Literal["open_clip", "onnx", "hf"]
    """open_clip: a folder for `create_model_from_pretrained("local-dir:...")`. onnx: a graph per
    tower. hf: a folder for `transformers.CLIPModel`, where the architecture is CLIP's own."""
    out: str
    """A new folder."""
    images: list[str] = field(default_factory=list)
    """Images to compare features on. None given: pairs that the run validated on."""
    pairs: AtLeastTwo = 8
    """How many are compared."""
    overwrite: bool = False
    """Replace an earlier export."""


@dataclass(kw_only=True)
class AppConfig(ModelChoice):
    """A local page."""

    reads = ("checkpoint", "model", "pretrained", "index")

    index: str | None = None
    """An index to search: a folder written by medclip_oc.embed."""
    host: str = "127.0.0.1"
    """Address to serve at. 0.0.0.0 lets everybody in the network in, without a password."""
    port: Annotated[int, PORT] = 7860
    """Port to serve at."""
