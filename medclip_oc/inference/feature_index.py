"""An index: features of pairs in a folder, searched without loading it all.

    about.json            format, pairs, width, dtype, model, data, split; probes (see `Embedder`);
                          files: size and SHA-256 of each other one, and of the rest of this one
    image_features.npy    (N, D) float16 or float32, normalised; numpy.load(..., mmap_mode="r")
    caption_features.npy  the same of the captions
    pairs.jsonl           a line for each row: id, caption, shard, position
    pairs.npy             (N + 1,) int64, where each of these lines begins, in bytes
    faiss-images.index, faiss-captions.index    where asked for

N pairs, D embedding size, Q queries, K answers.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..data import dataset, loader
from ..data.shards import ShardSet
from ..errors import InputError
from ..models.clip import SORTED
from ..packing.journal import file_hash
from ..runtime.atomic import atomic_folder
from ..runtime.extras import needed
from ..runtime.progress import Progress, print_line
from .embedder import Embedder

FORMAT = "medclip_oc-index/1"
Target = Literal["images", "captions"]
Rows = tuple[Tensor, Tensor, list[dict[str, Any]]]
"""Features of images and of captions, (B, D) both, and what is known of each pair."""
_FILES: dict[Target, str] = {"images": "image_features.npy", "captions": "caption_features.npy"}
_ABOUT, _PAIRS, _ENDS = "about.json", "pairs.jsonl", "pairs.npy"
_ROWS = 65_536  # looked at at once
_PROBED = 32  # lists of faiss that are searched, of some 4 times the root of N
_FAISS_SAMPLE = 200_000


def write(
    folder: Path,
    size: tuple[int, int],
    dtype: str,
    batches: Iterable[Rows],
    about: dict[str, Any],
    *,
    faiss: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the index of N rows, which come in order; its folder appears when it is complete.

    `size` is (N, D), `dtype` float16 or float32, `about` the rest of what about.json says.
    InputError: it is there already; WorkError: it can't be written.
    """
    is_index = (folder / _ABOUT).is_file()
    if folder.exists() and not (overwrite and is_index):
        hint = "--overwrite replaces it" if is_index else "it is no index"
        raise InputError(f"--out: {folder} is there already ({hint})")
    with atomic_folder(folder, replace=overwrite) as partial, ExitStack() as opened:
        lines, *features = (
            opened.enter_context((partial / name).open("wb")) for name in (_PAIRS, *_FILES.values())
        )
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "shape": size}
        for file in features:
            np.lib.format.write_array_header_1_0(file, header | {"fortran_order": False})
        lengths = [0]
        for *rows, pairs in batches:
            for file, values in zip(features, rows, strict=True):
                file.write(values.cpu().numpy().astype(dtype).tobytes())
            for pair in pairs:
                line = json.dumps(pair, ensure_ascii=False) + "\n"
                lengths.append(lines.write(line.encode(errors="backslashreplace")))
        assert len(lengths) == size[0] + 1
        opened.close()  # all is written
        np.save(partial / _ENDS, np.cumsum(lengths))
        for target, name in _FILES.items() if faiss else ():
            _write_faiss(np.load(partial / name, mmap_mode="r"), partial / f"faiss-{target}.index")
        facts = {"format": FORMAT, "pairs": size[0], "width": size[1], "dtype": dtype}
        facts |= {"faiss": faiss, **about}
        facts["files"] = _hashes(partial, facts)
        (partial / _ABOUT).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def embedded(embedder: Embedder, shards: ShardSet) -> Iterator[Rows]:
    """Rows of all pairs in their order, some batches at once; InputError, WorkError: a pair can't
    be read, or features are not finite.
    """
    number, size, bare = len(shards), embedder.batch_size, 0
    images, tokens, pairs = list[Tensor](), list[Tensor](), list[dict[str, Any]]()
    starts = range(0, number, size)
    batches = dataset.load_batches(
        loader.evaluation_pairs(shards, embedder.clip),
        ([(0, n) for n in range(start, min(start + size, number))] for start in starts),
        workers=embedder.processes(number),
        pin=embedder.device.type == "cuda",
    )
    with Progress(number, "pairs", "embed") as progress:
        for loaded in batches:
            images.append(embedder.forward("image", loaded.batch["images"]))
            tokens.append(loaded.batch["tokens"])
            for position in loaded.batch["index"].tolist():
                sample = shards.read(position, image=False)
                shard = shards.locate(position).removesuffix(f": {sample.key}")
                pair = {"id": sample.key, "caption": sample.caption}
                pairs.append(pair | {"shard": shard, "position": position})
            progress.update(len(images[-1]))
            if len(pairs) < SORTED and position + 1 < number:
                continue
            captions = embedder.tokens(torch.cat(tokens))  # (B, D)
            has_caption = torch.tensor([bool(pair["caption"]) for pair in pairs])  # (B,)
            bare += int((~has_caption).sum())
            yield torch.cat(images), captions * has_caption[:, None].to(captions.device), pairs
            images, tokens, pairs = [], [], []
    if bare:
        print_line(f"{bare:,} images have no caption: they are found by what they show alone")


class Index:
    """An index on the disk, opened; InputError: missing, damaged, or of another format."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / _ABOUT).is_file():
            problem = "not an index" if folder.is_dir() else "no such folder"
            raise InputError(f"--index: {folder}: {problem}; medclip_oc.embed makes one")
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            files = about.pop("files")
            assert (about["format"], files) == (FORMAT, _hashes(folder, about))
        except Exception:  # a damaged file raises whatever its reader trips over
            problem = "damaged, or of another version; embed the data again"
            raise InputError(f"--index: {folder}: {problem}") from None
        self.about: dict[str, Any] = about  # what about.json says of it
        self._features = {
            target: np.load(folder / file, mmap_mode="r") for target, file in _FILES.items()
        }
        self._pairs = np.memmap(folder / _PAIRS, mode="r")
        self._ends = np.load(folder / _ENDS)

    def __len__(self) -> int:
        return int(self.about["pairs"])

    def pair(self, row: int) -> dict[str, Any]:
        """id, caption, shard and position of a row."""
        begin, end = self._ends[row : row + 2]
        facts: dict[str, Any] = json.loads(self._pairs[begin:end].tobytes())
        return facts

    def search(
        self, queries: Tensor, k: int, *, target: Target = "images", engine: str = "exact"
    ) -> tuple[Tensor, Tensor]:
        """The k (or all) rows of highest cosine with each query (Q, D), normalised: cosines (Q, K)
        float32 and rows (Q, K) int64, best first; equal ones in the order of the rows.

        The engine "exact" looks at every row, "faiss" at the lists that promise most, with -1 where
        it finds fewer. InputError: the index, or this Python, lacks faiss.
        """
        queries, k = queries.float().cpu(), min(k, len(self))
        if engine == "faiss":
            return self._approximate(queries, k, target)
        scores, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for first in range(0, len(self), _ROWS):
            block = self._rows(target, slice(first, first + _ROWS))
            best = (queries @ block.T).topk(min(k, len(block)))  # (Q, K)
            rows = torch.cat([rows, first + best.indices], 1)
            scores, rows = _best(torch.cat([scores, best.values], 1), rows)
            scores, rows = scores[:, :k], rows[:, :k]
        return scores, rows

    def _approximate(self, queries: Tensor, k: int, target: Target) -> tuple[Tensor, Tensor]:
        file = self.folder / f"faiss-{target}.index"
        if not file.is_file():
            raise InputError(f"--engine faiss: {self.folder} has no such lists; embed it --faiss")
        faiss = needed("faiss", "faiss")
        lists = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
        lists.nprobe = min(_PROBED, lists.nlist)
        rows = torch.from_numpy(lists.search(queries.numpy(), k)[1])  # (Q, K)
        features = self._rows(target, rows.clamp(min=0).numpy())  # (Q, K, D)
        scores = (features @ queries.unsqueeze(2)).squeeze(2).masked_fill(rows < 0, -2.0)
        return _best(scores, rows)

    def _rows(self, target: Target, rows: Any) -> Tensor:
        return torch.from_numpy(np.array(self._features[target][rows], dtype=np.float32))


def _hashes(folder: Path, about: dict[str, Any]) -> dict[str, list[Any]]:
    """Size and SHA-256 of each file; in place of about.json, of the rest of what that says."""
    rest, names = json.dumps(about, sort_keys=True).encode(), [_PAIRS, _ENDS, *_FILES.values()]
    names += [f"faiss-{target}.index" for target in _FILES if about["faiss"]]
    files = {name: [(folder / name).stat().st_size, file_hash(folder / name)] for name in names}
    return files | {_ABOUT: [len(rest), hashlib.sha256(rest).hexdigest()]}


def _best(scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted by score, best first; equal ones by row."""
    rows, order = rows.sort(1)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return scores, rows.gather(1, order)


def _write_faiss(features: np.ndarray, file: Path) -> None:
    """Inverted lists around means of a sample (Jegou et al. 2011), features as they are."""
    faiss = needed("faiss", "faiss")
    number, width = features.shape
    lists = max(1, min(int(4 * number**0.5), number // 39))  # faiss wants 39 points of each
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    step = max(1, number // _FAISS_SAMPLE)
    index.train(np.array(features[::step], dtype=np.float32))
    for first in range(0, number, _ROWS):
        index.add(np.array(features[first : first + _ROWS], dtype=np.float32))
    faiss.write_index(index, str(file))
