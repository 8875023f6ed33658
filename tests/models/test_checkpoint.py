"""Files written whole or not at all, and refused where they are damaged or would run code."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medclip_oc.errors import DamagedCheckpoint, InputError, WorkError
from medclip_oc.models import checkpoint, pretrained
from tests.support.fault_injection import Payload


def test_round_trip(tmp_path: Path) -> None:
    """Also for others, and with the seal of earlier versions: a comment of the zip archive."""
    file = tmp_path / "a.pt"
    checkpoint.save(file, {"state_dict": {"w": torch.arange(40.0)}, "step": 4})
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    comment = b"medclip_oc sha256 " + b"0" * 64
    sealed = file.read_bytes()[:-2] + len(comment).to_bytes(2, "little") + comment
    for written in (file.read_bytes(), sealed):
        file.write_bytes(written)
        content = checkpoint.load(file)
        assert content["state_dict"]["w"].tolist() == list(range(40))
        assert content["step"] == 4
    assert torch.load(file, weights_only=True, mmap=True)["state_dict"]["w"][39] == 39


def test_a_failed_write_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.pt"
    checkpoint.save(file, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    device = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb", 0)
    # torch reports the system's error as one of its own
    for name, fault in (("os.fsync", full), ("pathlib.Path.open", lambda *_: device)):
        with monkeypatch.context() as failing:
            failing.setattr(name, fault)
            with pytest.raises(WorkError, match=r"a\.pt: can.t be written \(No space left on dev"):
                checkpoint.save(file, {"state_dict": {"w": torch.ones(9)}, "step": 2})
        assert checkpoint.load(file)["step"] == 1
        assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_no_changed_byte_goes_unseen(tmp_path: Path) -> None:
    """torch.load itself takes a changed weight without a word; the archive's checksums don't."""
    file, weights = tmp_path / "a.pt", torch.arange(400.0)
    checkpoint.save(file, {"state_dict": {"w": weights}, "step": 4})
    written = file.read_bytes()
    start = written.index(weights.numpy().tobytes())
    for place in (start, start + 77, start + 159, written.index(b"step")):
        changed = bytearray(written)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(DamagedCheckpoint, match=r"a\.pt: damaged or not a checkpoint file"):
            checkpoint.load(file)
        assert checkpoint.load(file, verify=False)["format"] == checkpoint.FORMAT
    for other in (b"", b"hello", b"PK\x03\x04" + bytes(60), bytes(1000), written[:2000]):
        file.write_bytes(other)
        with pytest.raises(DamagedCheckpoint, match=r"a\.pt: damaged or not a checkpoint file"):
            checkpoint.load(file)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    file, marker = tmp_path / "a.pt", tmp_path / "ran"
    torch.save({"format": checkpoint.FORMAT, "state_dict": Payload(marker)}, file)
    for read in (checkpoint.load, pretrained.load_weights):
        with pytest.raises(InputError, match="refused: it holds pickled Python objects"):
            read(file)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("w", torch.ones(2, dtype=torch.int32), r"w \(torch\.int32, .*no plain tensor of float32,"),
        ("w", torch.ones(2, dtype=torch.bool), r"w \(torch\.bool, "),
        ("w", torch.ones(2, dtype=torch.complex64), r"w \(torch\.complex64, "),
        ("w", torch.ones(2).to_sparse(), r"w \(torch\.float32, torch\.sparse_coo\) is no plain"),
        ("w", torch.ones(1).as_strided((1 << 30, 1 << 30), (0, 0)), "w .*is no plain tensor"),
        ("w", torch.tensor([1, torch.inf]), "w holds NaN or infinite numbers"),
        ("logit_scale", torch.tensor(torch.nan), "logit_scale holds NaN or"),
        ("logit_scale", torch.tensor(1e4), "logit_scale, the log of .* is 10000; at most 10"),
        ("logit_scale", 3.0, "holds .*, no state dict"),
    ],
)
def test_no_number_is_cast_or_taken_that_no_model_has(
    tmp_path: Path, name: str, tensor: torch.Tensor, message: str
) -> None:
    file, state = tmp_path / "a.pt", {"bn.num_batches_tracked": torch.tensor(3), name: tensor}
    torch.save(state, file)
    with pytest.raises(InputError, match=rf"a\.pt: {message}"):
        pretrained.load_weights(file)
    checkpoint.save(file, {"state_dict": state})
    with pytest.raises(InputError, match=rf"a\.pt: {message}"):
        checkpoint.load(file)


def test_weights_of_others(tmp_path: Path) -> None:
    file, safe = tmp_path / "a.pt", tmp_path / "a.safetensors"
    half = torch.ones(1).half()
    for content in ({"w": half}, {"state_dict": {"module.w": torch.ones(1)}, "epoch": 3}):
        torch.save(content, file)
        assert list(pretrained.load_weights(file)) == ["w"]
        with pytest.raises(InputError, match="not a medclip_oc checkpoint"):
            checkpoint.load(file)
    save_file({"w": torch.ones(1)}, safe)
    assert list(pretrained.load_weights(safe)) == ["w"]
    torch.save({"epoch": 3}, file)
    with pytest.raises(InputError, match=r"holds .*, no state dict"):
        pretrained.load_weights(file)
    for data, message in (
        (b"12345678rest", "damaged or not a safetensors file; copy or download it again"),
        (safe.read_bytes()[:-2], "damaged or not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer .*`git lfs pull`"),
    ):
        safe.write_bytes(data)
        with pytest.raises(InputError, match=rf"a\.safetensors: {message}"):
            pretrained.load_weights(safe)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=r"a\.pt: a Git LFS pointer"):
        checkpoint.load(file)
    with pytest.raises(InputError, match="no such file"):
        pretrained.load_weights(tmp_path / "b.pt")
