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
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, WorkError

FORMAT = "medclip_oc-index/1"
What = Literal["images", "captions"]
_FILES: dict[What, str] = {"images": "image_features.npy", "captions": "caption_features.npy"}
_ABOUT, _PAIRS, _ENDS = "about.json", "pairs.jsonl", "pairs.npy"
_ROWS = 65_536
"""Looked at at once."""
_PROBED = 32
"""Lists of faiss that are searched, of some 4 times the root of N."""
_FAISS_SAMPLE = 200_000


class IndexWriter:
    """Writes an index row by row. The folder appears when it is whole.

    Args:
        folder: a new one.
        pairs: N.
        width: D.
        dtype: "float16" or "float32".
        overwrite: whether it may replace an index.

    Raises:
        InputError: the folder is there, or can't be made.
    """

    def __init__(
        self, folder: Path, pairs: int, width: int, dtype: str, *, overwrite: bool = False
    ) -> None:
        if folder.exists() and not (overwrite and (folder / _ABOUT).is_file()):
            hint = "--overwrite replaces it" if (folder / _ABOUT).is_file() else "it is no index"
            raise InputError(f"--out: {folder} is there already ({hint})")
        self.folder, self._partial = folder, folder.with_name(folder.name + ".partial")
        try:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(parents=True)
            self._features = {
                what: _reserved(self._partial / file, (pairs, width), dtype)
                for what, file in _FILES.items()
            }
            self._lines = (self._partial / _PAIRS).open("wb")
        except OSError as error:
            raise InputError(f"--out: {folder} can't be written ({error.strerror})") from error
        self._ends = np.zeros(pairs + 1, dtype=np.int64)
        self._done = 0

    def add(self, images: Tensor, captions: Tensor, pairs: Sequence[dict[str, Any]]) -> None:
        """The next rows: features (n, D), and what is known of each pair."""
        stop = self._done + len(pairs)
        for what, rows in (("images", images), ("captions", captions)):
            self._features[what][self._done : stop] = rows.cpu().numpy()  # type: ignore[index]
        for row, pair in enumerate(pairs, self._done):
            line = json.dumps(pair, ensure_ascii=False) + "\n"
            data = line.encode(errors="backslashreplace")
            self._lines.write(data)
            self._ends[row + 1] = self._ends[row] + len(data)
        self._done = stop

    def finish(self, about: dict[str, Any], *, faiss: bool) -> None:
        """Write the rest, and let the folder appear."""
        assert self._done == len(self._ends) - 1
        self._lines.close()
        np.save(self._partial / _ENDS, self._ends)
        for what, features in self._features.items():
            features.flush()
            if faiss:
                _write_faiss(features, self._partial / f"faiss-{what}.index")
        facts = {"format": FORMAT, "pairs": self._done, "faiss": faiss, **about}
        (self._partial / _ABOUT).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self._partial.rename(self.folder)

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lines.close()
        shutil.rmtree(self._partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise WorkError(f"{self.folder}: can't be written ({error.strerror})") from error


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
            what = "not an index" if folder.is_dir() else "no such folder"
            raise InputError(f"--index: {folder}: {what}; medclip_oc.embed makes one")
        try:
            self.about: dict[str, Any] = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            self._features = {
                what: np.load(folder / file, mmap_mode="r", allow_pickle=False)
                for what, file in _FILES.items()
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
            found: dict[str, Any] = json.loads(file.read(end - begin))
        return found

    def search(
        self, queries: Tensor, k: int, *, what: What = "images", engine: str = "exact"
    ) -> tuple[Tensor, Tensor]:
        """The k rows of highest cosine with each query; equal ones in the order of the rows.

        Args:
            queries: (Q, D), normalised.
            k: how many; all rows where these are fewer.
            what: features of images or of captions.
            engine: "exact" looks at every row. "faiss" at the lists that promise most.

        Returns:
            cosines (Q, K) float32 and rows (Q, K) int64, best first; of faiss -1 where it found
            fewer.

        Raises:
            InputError: the engine is faiss, which the index, or this Python, lacks.
        """
        queries, k = queries.float().cpu(), min(k, len(self))
        if engine == "faiss":
            return self._approximate(queries, k, what)
        scores = torch.empty(len(queries), 0)
        rows = torch.empty(len(queries), 0, dtype=torch.int64)
        for first in range(0, len(self), _ROWS):
            block = self._rows(what, slice(first, first + _ROWS))
            found = (queries @ block.T).topk(min(k, len(block)))
            places = first + found.indices
            scores, rows = _best(torch.cat([scores, found.values], 1), torch.cat([rows, places], 1))
            scores, rows = scores[:, :k], rows[:, :k]
        return scores, rows

    def _approximate(self, queries: Tensor, k: int, what: What) -> tuple[Tensor, Tensor]:
        file = self.folder / f"faiss-{what}.index"
        if not file.is_file():
            raise InputError(f"--engine faiss: {self.folder} has no such lists; embed it --faiss")
        lists = _faiss().read_index(str(file), _faiss().IO_FLAG_MMAP)
        lists.nprobe = min(_PROBED, lists.nlist)
        rows = torch.from_numpy(lists.search(queries.numpy(), k)[1])
        found = self._rows(what, rows.clamp(min=0).flatten().numpy()).view(*rows.shape, -1)
        scores = (found @ queries.unsqueeze(2)).squeeze(2).masked_fill(rows < 0, -2.0)
        return _best(scores, rows)

    def _rows(self, what: What, which: Any) -> Tensor:
        return torch.from_numpy(np.array(self._features[what][which], dtype=np.float32))


def _best(scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted by score, best first; equal ones by row."""
    rows, order = rows.sort(1)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return scores, rows.gather(1, order)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise InputError("faiss is not installed: pip install 'medclip_oc[faiss]'") from error
    return faiss


def check_faiss() -> None:
    """Refuse at once what would fail at the end.

    Raises:
        InputError: faiss is not installed.
    """
    _faiss()


def _write_faiss(features: np.ndarray, file: Path) -> None:
    """Inverted lists around means of a sample (Jegou et al. 2011), features as they are."""
    faiss = _faiss()
    number, width = features.shape
    lists = max(1, min(int(4 * number**0.5), number // 39))  # faiss wants 39 points of each
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    step = max(1, number // _FAISS_SAMPLE)
    index.train(np.array(features[::step], dtype=np.float32))
    for first in range(0, number, _ROWS):
        index.add(np.array(features[first : first + _ROWS], dtype=np.float32))
    faiss.write_index(index, str(file))
