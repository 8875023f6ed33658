"""An index of pairs: `python -m medclip_oc.embed --checkpoint FILE --data SHARDS --out INDEX`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config.inference import EmbedConfig
from .runtime import command

if TYPE_CHECKING:
    from .data.shards import ShardSet


def main(settings: EmbedConfig) -> None:
    """Embed every pair once and write the index; memory doesn't grow with their number."""
    from .data import dataset, loader
    from .inference import embedder as embedding
    from .inference import feature_index
    from .runtime import distributed
    from .runtime.progress import Progress

    if settings.faiss:
        feature_index.check_faiss()
    world = distributed.World(0, 1, distributed.device_of(settings.device))
    shards = loader.open_shards(settings.data, settings.split or "test", world)
    embedder = embedding.open_embedder(settings)
    clip = embedder.clip
    width = int(clip.description["definition"]["embed_dim"])
    writer = feature_index.IndexWriter(
        Path(settings.out), len(shards), width, settings.dtype, overwrite=settings.overwrite
    )
    batches = dataset.load_batches(
        loader.evaluation_pairs(shards, clip),
        _batches(len(shards), settings.batch_size),
        workers=embedder.processes(len(shards)),
        pin=embedder.device.type == "cuda",
    )
    with writer, Progress(len(shards), "pairs", "embed") as progress:
        for loaded in batches:
            batch = loaded.batch
            images = embedder.forward(clip.towers.embed_images, batch["images"])
            captions = embedder.forward(clip.towers.embed_texts, batch["tokens"])
            embedding.check_finite(images, "image")
            embedding.check_finite(captions, "text")
            writer.add(images, captions, [_pair(shards, n) for n in batch["index"].tolist()])
            progress.update(len(images))
        about = {
            "width": width,
            "dtype": settings.dtype,
            "model": clip.description["name"],
            "data": settings.data,
            "split": settings.split or "test",
            "data_fingerprint": shards.fingerprint,
            "probes": embedder.probes(),
        }
        writer.finish(about, faiss=settings.faiss)
    print(f"{len(shards):,} pairs, {width} numbers each ({settings.dtype}): {settings.out}")


def _batches(size: int, batch: int) -> Iterator[list[tuple[int, int]]]:
    """Places of all pairs in order (see `data.Place`)."""
    for first in range(0, size, batch):
        yield [(0, index) for index in range(first, min(first + batch, size))]


def _pair(shards: "ShardSet", position: int) -> dict[str, Any]:
    """What an answer says of a pair."""
    sample = shards.read(position)
    shard = shards.locate(position).removesuffix(f": {sample.key}")
    return {"id": sample.key, "caption": sample.caption, "shard": shard, "position": position}


if __name__ == "__main__":
    command.run(
        main,
        EmbedConfig,
        prog="python -m medclip_oc.embed",
        description="Features of a set of pairs, as an index for zeroshot --search.",
    )
