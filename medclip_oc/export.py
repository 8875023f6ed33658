"""Checkpoints for others: `python -m medclip_oc.export --checkpoint F --to onnx --out DIR`.

The folder appears only after its features were compared with the checkpoint's. And pairs, with
`--to clip_benchmark --data SHARDS`.
"""

from .config.inference import ExportConfig
from .runtime import command


def main(settings: ExportConfig) -> None:
    """Write the folder; print how far its features are from the checkpoint's, and what is next."""
    from .exporters.export import export

    print(f"{settings.out}: {export(settings)}")
    how = "see" if settings.to == "clip_benchmark" else "load it by the lines of"
    print(f"written to {settings.out}; {how} {settings.out}/README.md")


if __name__ == "__main__":
    command.run(main, ExportConfig)
