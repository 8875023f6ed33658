"""Shards as webdataset reads them, without any code of ours."""

import gc
import warnings
from typing import Any

import webdataset


def stock(urls: list[str], decode: str | None = None) -> list[dict[str, Any]]:
    """The pairs as webdataset reads them."""
    dataset = webdataset.WebDataset(urls, shardshuffle=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to the collector
        found = list(dataset.decode(decode) if decode else dataset)
        del dataset
        gc.collect()
    return found
