"""An index of pairs: `python -m medclip_oc.embed --checkpoint FILE --data SHARDS --out INDEX`."""

from pathlib import Path

from .config.inference import EmbedConfig
from .runtime import command


def main(settings: EmbedConfig) -> None:
    """Embed every pair once and write the index; memory doesn't grow with their number."""
    from .data import dataset, loader
    from .inference import feature_index
    from .inference.embedder import open_embedder
    from .runtime import distributed
    from .runtime.precision import check_finite
    from .runtime.progress import Progress

    if settings.faiss:
        feature_index.import_faiss()  # it may be missing: better said now than at the end
    split = settings.split or "test"
    world = distributed.World(0, 1, distributed.device_of(settings.device))
    shards = loader.open_shards(settings.data, split, world)
    embedder = open_embedder(settings)
    towers, size, pairs = embedder.clip.towers, settings.batch_size, len(shards)
    starts = range(0, pairs, size)
    batches = dataset.load_batches(
        loader.evaluation_pairs(shards, embedder.clip),
        ([(0, n) for n in range(start, min(start + size, pairs))] for start in starts),
        workers=embedder.processes(pairs),
        pin=embedder.device.type == "cuda",
    )
    about = {
        "width": embedder.width,
        "dtype": settings.dtype,
        "model": embedder.clip.description["name"],
        "data": settings.data,
        "split": split,
        "data_fingerprint": shards.fingerprint,
    }
    new = feature_index.new_index(
        Path(settings.out), pairs, embedder.width, settings.dtype, overwrite=settings.overwrite
    )
    with new as writer, Progress(pairs, "pairs", "embed") as progress:
        for loaded in batches:
            images = embedder.forward(towers.embed_images, loaded.batch["images"])
            captions = embedder.forward(towers.embed_texts, loaded.batch["tokens"])
            check_finite(images, "image")
            check_finite(captions, "text")
            positions = loaded.batch["index"].tolist()
            writer.add(images, captions, [feature_index.describe(shards, n) for n in positions])
            progress.update(len(images))
        writer.finish({**about, "probes": embedder.probes()}, faiss=settings.faiss)
    print(f"{pairs:,} pairs, {embedder.width} numbers each ({settings.dtype}): {settings.out}")


if __name__ == "__main__":
    command.run(
        main,
        EmbedConfig,
        prog="python -m medclip_oc.embed",
        description="Features of a set of pairs, as an index for zeroshot --search.",
    )
