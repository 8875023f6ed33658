"""An index of pairs: `python -m medclip_oc.embed --checkpoint FILE --data SHARDS --out INDEX`."""

import shlex
from pathlib import Path

from .config.inference import EmbedConfig
from .runtime import command
from .runtime.extras import needed


def main(settings: EmbedConfig) -> None:
    """Embed every pair once and write the index; memory doesn't grow with their number."""
    from .data import loader
    from .inference import feature_index
    from .inference.embedder import open_embedder
    from .runtime.devices import device_of
    from .runtime.distributed import World

    if settings.faiss:
        needed("faiss", "faiss")  # it may be missing: better said now than at the end
    split = settings.split or "test"
    world = World(0, 1, device_of(settings.device))
    embedder = open_embedder(settings)
    key = settings.caption_key or embedder.clip.caption_key
    shards = loader.open_shards(settings.data, split, world, key, bare=True)
    feature_index.write(
        Path(settings.out),
        (len(shards), embedder.width),
        settings.dtype,
        feature_index.embedded(embedder, shards),
        {
            "model": embedder.clip.description["name"],
            "data": settings.data,
            "split": split,
            "caption_key": key,
            "data_fingerprint": shards.fingerprint,
            "probes": embedder.probes(),
        },
        faiss=settings.faiss,
        overwrite=settings.overwrite,
    )
    numbers = f"{embedder.width} numbers each ({settings.dtype})"
    print(f"{len(shards):,} pairs, {numbers}: written to {settings.out}")
    names = ("checkpoint", "model", "pretrained")
    model = [f"--{name}={value}" for name in names if (value := getattr(settings, name))]
    words = [*model, f"--index={settings.out}", "--search", "left pleural effusion"]
    print(f"search it with: python -m medclip_oc.zeroshot {shlex.join(words)}")


if __name__ == "__main__":
    command.run(main, EmbedConfig)
