"""A small local page: `python -m medclip_oc.app --checkpoint FILE [--index INDEX]`.

Drop an image, type captions, see them ranked; search an index by text or image and see pictures.
"""

from .config.inference import AppConfig
from .runtime import command


def main(settings: AppConfig) -> None:
    """Serve the page until it is interrupted."""
    from .web import serve

    serve.serve(settings)


if __name__ == "__main__":
    command.run(main, AppConfig)
