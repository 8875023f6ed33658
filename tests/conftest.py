"""Models and data sets that several tests need, made small and from seeds."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from medclip_oc import embed, make_shards
from medclip_oc.config.inference import EmbedConfig
from medclip_oc.config.packing import MakeShardsConfig
from medclip_oc.config.schema import ModelConfig
from medclip_oc.packing.formats import open_source
from medclip_oc.packing.pack import PackOptions, pack
from medclip_oc.runtime import shutdown
from tests.support.cli import Run, call
from tests.support.fault_injection import write_faulty_source
from tests.support.tiny_dataset import write_shards
from tests.support.tiny_models import TINY

# More threads than free cores spin against each other: small models run ten times slower.
torch.set_num_threads(1)

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def read_merges_once() -> None:
    """open_clip reads its merges for each tokenizer: three quarters of building a tiny model."""
    if "open_clip" in sys.modules:
        tokenizer = sys.modules["open_clip"].SimpleTokenizer
        init, tables = tokenizer.__init__, dict[str, dict[str, Any]]()

        def remembered(self: Any, **settings: Any) -> None:
            if repr(settings) not in tables:
                init(self, **settings)
                tables[repr(settings)] = dict(vars(self))
            vars(self).update(tables[repr(settings)])

        tokenizer.__init__ = remembered


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A command that was stopped ignores further signals, as would all that later tests start."""
    before = {number: signal.getsignal(number) for number in shutdown.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    """A ViT that embeds a batch in milliseconds."""
    return ModelConfig(arch="tiny-test", definition=TINY)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as training leaves it, of random weights."""
    from medclip_oc.models import factory
    from tests.support import reference

    file = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    return Path(reference.save(factory.build(tiny, seed=3), file))


@pytest.fixture(scope="session")
def rocov2_mini() -> Path:
    """280 real ROCOv2 pairs, where the machine has them."""
    folder = REAL_DATA / "rocov2_mini"
    if not folder.is_dir():
        pytest.skip(f"the real ROCOv2 pairs are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard folder of 48 training, 12 validation and 12 test pairs."""
    counts = {"train": 48, "valid": 12, "test": 12}
    return write_shards(tmp_path_factory.mktemp("packed"), counts, samples_per_shard=20)


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, packed: Path) -> Path:
    """Of the 48 training pairs of `packed`, in three shards."""
    out = tmp_path_factory.mktemp("index") / "train"
    words = ["--checkpoint", tiny_checkpoint, "--data", packed, "--split", "train", "--out", out]
    assert call(embed.main, EmbedConfig, *words, "--dtype", "float32", "--batch-size", 10) == 0
    return out


@pytest.fixture(scope="session")
def faulty_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faulty_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def faulty_packed(faulty_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard folder of the splits train and valid of it."""
    source, out = open_source(faulty_source, ["train", "valid"]), tmp_path_factory.mktemp("packed")
    report = pack(source, out, PackOptions(samples_per_shard=4))
    assert report.read == {"train": 23, "valid": 3}
    assert report.packed == {"train": 17, "valid": 3}
    return out


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs make_shards in this process."""
    return lambda *words: (call(make_shards.main, MakeShardsConfig, *words), *capsys.readouterr())


@pytest.fixture(scope="session")
def old_webdataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """webdataset 0.2.86 in a folder that only the peer's process sees."""
    folder = tmp_path_factory.mktemp("old_webdataset")
    words = ["--quiet", "--no-deps", "--target", str(folder), "webdataset==0.2.86"]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip can't install webdataset 0.2.86: {done.stderr.strip()[-200:]}")
    return folder
