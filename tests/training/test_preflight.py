"""`--doctor` finds each planted fault, in one line with its remedy, and lists what it looked at."""

import dataclasses
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from medclip_oc.data.augment import OFF
from medclip_oc.data.shards import ShardSet
from medclip_oc.runtime.distributed import World
from medclip_oc.training import build, preflight
from tests.support.cli import read_config, run_training, write_config
from tests.support.interrupted import fork_server
from tests.support.reference import ONE
from tests.support.tiny_dataset import caption, jpeg, write_tar

LOADER_RATE, STEP_RATE = preflight.loader_rate, preflight.step_rate


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast loader and a slow step, but where a test looks at these."""
    monkeypatch.setattr(preflight, "loader_rate", lambda *_: 1000.0)
    monkeypatch.setattr(preflight, "step_rate", lambda *_: 100.0)


def examined(folder: Path, shards: Path, **changes: Any) -> int:
    code = run_training(write_config(shards, folder, **changes), "--doctor")
    assert not (folder / "run").exists(), "a check leaves no run"
    return code


FOUND = {
    "nothing": r"doctor: nothing found on 1 process\(es\)$",
    "missing shard": "error: data.train: .*train-000001.tar.*; restore it, or pack",
    "unreadable": r"error: data.train: none of 48 pairs can be read \(bad-00.*--verify says",
    "some unreadable": r"warning: data.train: 6 of 48 pairs can't be read \(bad-00.*pack again",
    "captions cut": r"warning: data.long_captions: 3\d% of the captions .* `sentences`",
    "memory for 4": "error: train.micro_batch_size: 32 needs more memory .*; take 4, the",
    "memory for 0": "error: the GPU has no memory for one pair of this model",
    "slow loader": "warning: data.workers: 0 give 99 pairs/s, a step takes 100: .*--resize",
    "full disk": "error: run.folder: .* has 0.001 GB free, .* need about .* make room",
    "no wandb": "error: log.wandb: online does not work here: .*http://127.0.0.1:9.*offline",
}


def plant(fault: str, shards: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings with which the fault shows."""

    def long_captions(self: ShardSet, position: int, **how: bool) -> Any:  # 30 % of them
        text = "a lesion of the left lung " * 20 if position % 10 < 3 else "a lesion"
        return dataclasses.replace(read(self, position, **how), caption=text)

    def out_of_memory(_: object, images: int, texts: int) -> float:
        if images > int(fault[-1]):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 100.0

    read, usage = ShardSet.read, shutil.disk_usage("/")
    if fault == "missing shard":
        (shards / "train-000001.tar").unlink()
    elif "unreadable" in fault:
        pairs = dict[str, bytes]()
        for n in range(48):
            image = jpeg(n) if fault.startswith("some") and n % 8 else b"\xff\xd8 no image"
            pairs |= {f"p{n}.jpg": image, f"p{n}.txt": caption(n).encode()}
        return {"data__train": str(write_tar(shards.parent / "bad-000000.tar", pairs))}
    elif fault == "captions cut":
        patch.setattr(ShardSet, "read", long_captions)
    elif "memory" in fault:
        patch.setattr(preflight, "step_rate", out_of_memory)
        return {"train__micro_batch_size": 32}
    elif fault == "slow loader":
        patch.setattr(preflight, "loader_rate", lambda *_: 99.0)
    elif fault == "full disk":
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    elif fault == "no wandb":
        patch.setenv("WANDB_API_KEY", "0" * 40)
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
        patch.setenv("WANDB_HTTP_TIMEOUT", "1")
        return {"log__wandb": "online"}
    return {}


@pytest.mark.parametrize("fault", FOUND)
def test_planted(fault: str, packed: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(packed, shards)
    code = examined(tmp_path, shards, **plant(fault, shards, monkeypatch))
    shown = capsys.readouterr()
    *checked, found = sorted(shown.out.splitlines(), key=lambda line: not line.endswith(": ok"))
    assert re.match(FOUND[fault], found), shown.out
    assert all(line.endswith(": ok") for line in checked), "nothing else is made up"
    assert code == found.startswith("error")
    assert "Traceback" not in shown.err
    if fault == "nothing":
        names = "data, model, learning rate, disk, shared memory, pairs, loss at start, speed"
        assert re.findall(r"^[a-z ]+[a-z]", "\n".join(checked), re.M) == names.split(", ")


@pytest.mark.slow
def test_a_batch_that_two_processes_cannot_share(packed: Path, tmp_path: Path) -> None:
    """The twelfth; and findings of two processes are said once."""
    file = write_config(packed, tmp_path, train__global_batch_size=15)
    assert fork_server.train(2, tmp_path, "--config", file, "--doctor") == [1, 1]
    said = "".join((tmp_path / f"rank{rank}.out").read_text() for rank in (0, 1))
    assert said.startswith("error: train.global_batch_size: 15 can't be shared equally by 2")
    assert [said.count(word) for word in ("error", "model: ", "pairs: ")] == [1, 1, 0]


def opened(packed: Path, tmp_path: Path, **changes: Any) -> preflight.Opened:
    config = read_config(write_config(packed, tmp_path, **changes))
    return preflight.Opened(config, ONE, build.open_data(config, ONE), build.model(config, ONE))


def test_the_edges_of_each_check(packed: Path, tmp_path: Path, monkeypatch: Any) -> None:
    run = opened(packed, tmp_path)
    two = [preflight._spread(10, 4, World(rank, 2, run.world.device)) for rank in (0, 1)]
    assert two == [[0, 5], [2, 7]]

    images, tokens = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.ones(4, 32).long()
    for above_chance, findings in ((1.99, 0), (2.01, 1), (math.nan, 1)):
        value = torch.tensor(math.log(4) + above_chance)
        monkeypatch.setattr(preflight, "clip_loss", lambda *_, value=value: value)
        assert len(list(preflight.loss(images, tokens, run))) == 1 + findings

    usage, run.config.data.workers = shutil.disk_usage("/"), 3
    for free in (79871, 79872):  # 2 * 3 batches of 4 pairs, of 3 * 32 * 32 + 32 * 8 bytes each
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        assert len(list(preflight.shared_memory(run))) == 1 + (free == 79871)
    run.config.data.workers = 0

    sizes = list[tuple[int, int]]()
    monkeypatch.setattr(preflight, "step_rate", lambda _, *rows: sizes.append(rows) or 99.0)
    run.config.train.micro_batch_size, run.config.train.text_micro_batch_size = 99, 5
    assert list(preflight.speed(run)) == ["speed: step 99 pairs/s, loader 1,000 pairs/s"]
    assert sizes == [(16, 5)], "a step has no more than 16"
    assert LOADER_RATE(run) > 0  # of the real loader, and of a real step: no more can be promised
    assert STEP_RATE(run, 3, 2) > 0


def test_the_longest_texts_have_to_fit(packed: Path, tmp_path: Path, monkeypatch: Any) -> None:
    run = opened(packed, tmp_path)
    said, *_ = preflight.pairs(run)
    tokens = run.clip.tokenizer([caption(n) for n in range(48)])
    mean = math.ceil(int((tokens != 0).sum()) / 48)
    assert said == f"pairs: 48 read, 0 captions cut, {mean} of 32 tokens embedded on average"
    assert f" (texts of {mean} tokens), " in next(preflight.speed(run))
    widths, embed = list[int](), run.clip.towers.embed_texts
    watched = lambda tokens: widths.append(tokens.shape[1]) or embed(tokens)  # noqa: E731
    monkeypatch.setattr(run.clip.towers, "embed_texts", watched)
    assert STEP_RATE(run, 3, 2) > 0
    assert widths == [32, 32, mean, mean]


def test_images_that_no_step_embeds(packed: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Once they have features, a slow loader delays nothing."""
    once = {"optim__freeze": "image", "data__augment": dataclasses.asdict(OFF), "train__epochs": 2}
    run = opened(packed, tmp_path, **once)
    monkeypatch.setattr(preflight, "loader_rate", lambda *_: 1.0)
    assert list(preflight.speed(run)) == ["speed: step 100 pairs/s, loader 1 pairs/s"]
    clock, towers = [0.0], run.clip.towers

    def lasting(seconds: float, embed: Any) -> Any:
        return lambda rows: clock.append(clock[-1] + seconds) or embed(rows)

    monkeypatch.setattr(preflight.time, "perf_counter", lambda: clock[-1])
    monkeypatch.setattr(towers, "embed_images", lasting(99.0, towers.embed_images))
    monkeypatch.setattr(towers, "embed_texts", lasting(1.0, towers.embed_texts))
    assert STEP_RATE(run, 3, 2) == 1.0, "two passes of a second over two texts"
    assert clock[-1] == 4 * 99 + 4, "images have to fit nevertheless"


OPENAI = {"arch": "ViT-B-16", "pretrained": "openai"}
LORA = {"lora": {"rank": 4}}
IMAGES = {"model": OPENAI, "optim__freeze": "image"}


@pytest.mark.parametrize(
    ("changes", "lr", "level", "method"),
    [
        ({}, 4e-5, "warning", "a model from scratch: it hardly learns"),
        ({}, 5e-5, "", ""),
        ({}, 5e-3, "", ""),
        ({}, 6e-3, "warning", "a model from scratch: it forgets"),
        ({}, 0.03, "error", "a model from scratch: it forgets"),
        (LORA, 0.003, "warning", r"adapters \(lora.rank\)"),
        ({"model": OPENAI}, 2e-4, "warning", "a pretrained model in full"),
        (IMAGES, 6e-4, "warning", "one tower or some layers of a pretrained"),
    ],
)
def test_rates(tmp_path: Path, changes: dict[str, Any], lr: float, level: str, method: str) -> None:
    file = write_config(tmp_path, tmp_path, **changes, optim__lr=lr, optim__text_lr=lr)
    found = list(preflight.rates(read_config(file)))
    assert len(found) == (2 if level else 0), "one for both towers, and one for the texts"
    assert all(re.match(f"{level}: optim.(text_)?lr: .* for {method}", line) for line in found)
