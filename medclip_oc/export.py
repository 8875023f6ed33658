"""Checkpoints for others: `python -m medclip_oc.export --checkpoint F --to onnx --out DIR`.

The folder appears only after its features were compared with the checkpoint's. And pairs, with
`--to clip_benchmark --data SHARDS`.
"""

from .config.inference import ExportConfig
from .runtime import command


def main(settings: ExportConfig) -> None:
    """Write the folder; print how far its features are from the checkpoint's, and what is next."""
    from .exporters.export import export_checkpoint, export_pairs

    if settings.to == "clip_benchmark":
        print(f"{export_pairs(settings)}: written to {settings.out}; its README.md has the call")
        return
    images, texts, difference = export_checkpoint(settings)
    print(
        f"{settings.out}: features of {images} images and {texts} texts "
        f"differ from the checkpoint's by at most {difference:.1e}"
    )
    print(f"written to {settings.out}; load it by the lines of {settings.out}/README.md")


if __name__ == "__main__":
    command.run(main, ExportConfig)
