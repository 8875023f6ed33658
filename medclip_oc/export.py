"""Checkpoints for others: `python -m medclip_oc.export --checkpoint F --to onnx --out DIR`.

The folder appears only after its features were compared with the checkpoint's.
"""

from .config.inference import ExportConfig
from .runtime import command


def main(settings: ExportConfig) -> None:
    """Write the folder, and print by how much its features differ from the checkpoint's."""
    from .exporters.export import export_checkpoint

    images, texts, difference = export_checkpoint(settings)
    print(
        f"{settings.out}: features of {images} images and {texts} texts "
        f"differ from the checkpoint's by at most {difference:.1e}"
    )


if __name__ == "__main__":
    command.run(main, ExportConfig)
