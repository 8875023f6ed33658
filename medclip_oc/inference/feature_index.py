"""An index: features of pairs in a folder, searched without loading it all.

    about.json            format, pairs, width, dtype, model, data, split; probes (see `Embedder`)
    image_features.npy    (N, D) float16 or float32, normalised; numpy.load(..., mmap_mode="r")
    caption_features.npy  the same of the captions
    pairs.jsonl           a line for each row: id, caption, shard, position
    pairs.npy             (N + 1,) int64, where each of these lines begins, in bytes
    faiss-images.index, faiss-captions.index    where asked for

N pairs, D embedding size, Q queries, K answers.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..data.shards import ShardSet
from ..errors import InputError
from ..runtime.atomic import atomic_folder

FORMAT = "medclip_oc-index/1"
Target = Literal["images", "captions"]
_FILES: dict[Target, str] = {"images": "image_features.npy", "captions": "caption_features.npy"}
_ABOUT, _PAIRS, _ENDS = "about.json", "pairs.jsonl", "pairs.npy"
_ROWS = 65_536
"""Looked at at once."""
_PROBED = 32
"""Lists of faiss that are searched, of some 4 times the root of N."""
_FAISS_SAMPLE = 200_000


class IndexWriter:
    """Writes an index row by row; see `new_index`.

    Args:
        folder: empty.
        pairs: N.
        width: D.
        dtype: "float16" or "float32".
    """

    def __init__(self, folder: Path, pairs: int, width: int, dtype: str) -> None:
        self.folder = folder
        self._features = {
            target: _reserved(folder / file, (pairs, width), dtype)
            for target, file in _FILES.items()
        }
        self._ends = np.zeros(pairs + 1, dtype=np.int64)
        self._done = 0

    def add(self, images: Tensor, captions: Tensor, pairs: Iterable[dict[str, Any]]) -> None:
        """The next rows: features (n, D), and what is known of each pair."""
        stop = self._done + len(images)
        self._features["images"][self._done : stop] = images.cpu().numpy()
        self._features["captions"][self._done : stop] = captions.cpu().numpy()
        with (self.folder / _PAIRS).open("ab") as file:
            for row, pair in enumerate(pairs, self._done):
                line = json.dumps(pair, ensure_ascii=False) + "\n"
                size = file.write(line.encode(errors="backslashreplace"))
                self._ends[row + 1] = self._ends[row] + size
        self._done = stop

    def finish(self, about: dict[str, Any], *, faiss: bool) -> None:
        """Write the rest."""
        assert self._done == len(self._ends) - 1
        np.save(self.folder / _ENDS, self._ends)
        for target, features in self._features.items():
            features.flush()
            if faiss:
                _write_faiss(features, self.folder / f"faiss-{target}.index")
        facts = {"format": FORMAT, "pairs": self._done, "faiss": faiss, **about}
        (self.folder / _ABOUT).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def describe(shards: ShardSet, position: int) -> dict[str, Any]:
    """What an answer says of a pair."""
    sample = shards.read(position)
    shard = shards.locate(position).removesuffix(f": {sample.key}")
    return {"id": sample.key, "caption": sample.caption, "shard": shard, "position": position}


@contextmanager
def new_index(
    folder: Path, pairs: int, width: int, dtype: str, *, overwrite: bool = False
) -> Iterator[IndexWriter]:
    """A writer of an index, whose folder appears at the end of a `with` block.

    Args:
        folder: a new one, or an index if it may be overwritten.
        pairs: see `IndexWriter`.
        width: see `IndexWriter`.
        dtype: see `IndexWriter`.
        overwrite: whether it may replace an index.

    Raises:
        InputError: the folder is there.
        WorkError: it can't be written.
    """
    is_index = (folder / _ABOUT).is_file()
    if folder.exists() and not (overwrite and is_index):
        hint = "--overwrite replaces it" if is_index else "it is no index"
        raise InputError(f"--out: {folder} is there already ({hint})")
    with atomic_folder(folder, replace=overwrite) as partial:
        yield IndexWriter(partial, pairs, width, dtype)


def _reserved(file: Path, shape: tuple[int, int], dtype: str) -> "np.memmap[Any, Any]":
    """A new array in a file whose room on the disk is sure.

    Writing into a mapped file on a full disk would end the process without a word (SIGBUS).
    """
    rows = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return rows


class Index:
    """An index on the disk, opened.

    Attributes:
        about: what about.json says.

    Raises:
        InputError: it is missing, damaged, or of another format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / _ABOUT).is_file():
            problem = "not an index" if folder.is_dir() else "no such folder"
            raise InputError(f"--index: {folder}: {problem}; medclip_oc.embed makes one")
        try:
            self.about: dict[str, Any] = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            self._features = {
                target: np.load(folder / file, mmap_mode="r", allow_pickle=False)
                for target, file in _FILES.items()
            }
            self._ends = np.load(folder / _ENDS, mmap_mode="r", allow_pickle=False)
            shape = (self.about["pairs"], self.about["width"])
            size = (folder / _PAIRS).stat().st_size
            assert self.about["format"] == FORMAT
            assert isinstance(self.about["probes"], dict)
            assert all(rows.shape == shape for rows in self._features.values())
            assert (len(self._ends), int(self._ends[-1])) == (shape[0] + 1, size)
        except (OSError, ValueError, KeyError, TypeError, AssertionError, EOFError):
            raise InputError(f"--index: {folder}: damaged, or of another version") from None

    def __len__(self) -> int:
        return int(self.about["pairs"])

    def pair(self, row: int) -> dict[str, Any]:
        """id, caption, shard and position of a row."""
        begin, end = self._ends[row : row + 2].tolist()
        with (self.folder / _PAIRS).open("rb") as file:
            file.seek(begin)
            facts: dict[str, Any] = json.loads(file.read(end - begin))
        return facts

    def search(
        self, queries: Tensor, k: int, *, target: Target = "images", engine: str = "exact"
    ) -> tuple[Tensor, Tensor]:
        """The k rows of highest cosine with each query; equal ones in the order of the rows.

        Args:
            queries: (Q, D), normalised.
            k: how many; all rows where these are fewer.
            target: features of images or of captions.
            engine: "exact" looks at every row. "faiss" at the lists that promise most.

        Returns:
            cosines (Q, K) float32 and rows (Q, K) int64, best first; of faiss -1 where it found
            fewer.

        Raises:
            InputError: the engine is faiss, which the index, or this Python, lacks.
        """
        queries, k = queries.float().cpu(), min(k, len(self))
        if engine == "faiss":
            return self._approximate(queries, k, target)
        scores = torch.empty(len(queries), 0)
        rows = torch.empty(len(queries), 0, dtype=torch.int64)
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
        faiss = import_faiss()
        lists = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
        lists.nprobe = min(_PROBED, lists.nlist)
        rows = torch.from_numpy(lists.search(queries.numpy(), k)[1])
        # (Q, K, D)
        features = self._rows(target, rows.clamp(min=0).flatten().numpy()).view(*rows.shape, -1)
        scores = (features @ queries.unsqueeze(2)).squeeze(2).masked_fill(rows < 0, -2.0)
        return _best(scores, rows)

    def _rows(self, target: Target, rows: Any) -> Tensor:
        return torch.from_numpy(np.array(self._features[target][rows], dtype=np.float32))


def _best(scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted by score, best first; equal ones by row."""
    rows, order = rows.sort(1)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return scores, rows.gather(1, order)


def import_faiss() -> Any:
    """faiss, which is optional.

    Raises:
        InputError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise InputError("faiss is not installed: pip install 'medclip_oc[faiss]'") from error
    return faiss


def _write_faiss(features: np.ndarray, file: Path) -> None:
    """Inverted lists around means of a sample (Jegou et al. 2011), features as they are."""
    faiss = import_faiss()
    number, width = features.shape
    lists = max(1, min(int(4 * number**0.5), number // 39))  # faiss wants 39 points of each
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    step = max(1, number // _FAISS_SAMPLE)
    index.train(np.array(features[::step], dtype=np.float32))
    for first in range(0, number, _ROWS):
        index.add(np.array(features[first : first + _ROWS], dtype=np.float32))
    faiss.write_index(index, str(file))
