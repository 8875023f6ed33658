"""What open_clip_train's own pipeline reads from shards, as JSON on stdout; a process of its own.

    python open_clip_reader.py SHARDS train|valid ...

prints a line for each pair of words.
webdataset 0.2.86 must come first on its path: the pipeline breaks with newer ones.
"""

import importlib.metadata
import json
import sys
from argparse import Namespace
from typing import Any

import open_clip
import torch
from open_clip_train.data import get_wds_dataset


def corner(image: Any) -> torch.Tensor:
    """Enough of an RGB image to know it by: its size and the pixel in the middle."""
    middle = image.getpixel((image.width // 2, image.height // 2))
    return torch.tensor([*image.size, *middle])


def main(shards: str, use: str) -> None:
    train = use == "train"
    args = Namespace(
        train_data=shards,
        val_data=shards,
        train_num_samples=None,  # sizes.json says it
        val_num_samples=None,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=1,
        workers=0,
        world_size=1,
    )
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    try:
        loader = get_wds_dataset(args, corner, is_train=train, tokenizer=tokenizer).dataloader
    except RuntimeError as error:
        print(json.dumps({"error": str(error)}))
        return
    pairs = [[image[0].tolist(), tokens[0].tolist()] for image, tokens in loader]
    version = importlib.metadata.version("webdataset")
    print(json.dumps({"webdataset": version, "samples": loader.num_samples, "pairs": pairs}))


if __name__ == "__main__":
    for shards, use in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        main(shards, use)
