"""The modules that one batch and one image pass, as docs/architecture.md shows them.

    python tests/support/trace.py

A small run is trained and a small folder packed in this process, while the calls of functions of
the package are recorded.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from medclip_oc import make_shards, train
from medclip_oc.config.packing import MakeShardsConfig
from medclip_oc.config.parse import parse
from medclip_oc.config.schema import TrainCommand
from tests.support.cli import write_config
from tests.support.tiny_dataset import write_kaggle

ROOT = Path(__file__).resolve().parents[2]
Call = tuple[str, str]  # module, function


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """The package's calls in this thread, in order, while it lasts."""
    package, calls = f"{ROOT / 'medclip_oc'}/", list[Call]()

    def note(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(package):
            module = code.co_filename.removeprefix(package).removesuffix(".py")
            calls.append((module, code.co_qualname))

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def modules(calls: list[Call]) -> list[str]:
    """The modules of some calls, as first met."""
    return list(dict.fromkeys(module for module, _ in calls))


def _packing(folder: Path, pairs: int) -> MakeShardsConfig:
    source, out = write_kaggle(folder / "source", {"train": pairs}), folder / "shards"
    return MakeShardsConfig(source=str(source), out=str(out), workers=1, splits=["train"])


def batch_way(folder: Path) -> list[str]:
    """From the loop's taking the second batch to its loss."""
    make_shards.main(_packing(folder, 32))
    file = write_config(folder / "shards", folder, data__valid=None)
    config = parse(TrainCommand, ["--config", str(file)])
    with recorded() as calls:
        train.main(config)
    agreed = next(n for n, (_, name) in enumerate(calls) if name == "Trainer.agree")
    first = next(n for n, call in enumerate(calls) if n > agreed and call[0].startswith("data/"))
    last = next(n for n, call in enumerate(calls) if n > first and call[0] == "contrastive/loss")
    passed = modules(calls[first : last + 1])
    return list(dict.fromkeys(["train", "training/trainer", *passed]))


def image_way(folder: Path) -> list[str]:
    """From the tar's asking for the second image to its asking for the third."""
    config = _packing(folder, 8)
    with recorded() as calls:
        make_shards.main(config)
    asked = [n for n, call in enumerate(calls) if call == ("packing/tar_writer", "_rest")]
    return ["make_shards", *modules(calls[asked[0] + 1 : asked[1] + 1])]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for thing, way in (("image", image_way), ("batch", batch_way)):
            passed = way(Path(name, thing))
            print(f"one {thing}, {len(passed)} modules: {' -> '.join(passed)}")
