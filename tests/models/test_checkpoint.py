import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medclip_oc.errors import DamagedCheckpoint, InputError, WorkError
from medclip_oc.models import checkpoint
from tests.support.fault_injection import Payload


def test_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    checkpoint.save(file, {"state_dict": {"w": torch.arange(3)}, "step": 4})
    content = checkpoint.load(file)
    assert content["state_dict"]["w"].tolist() == [0, 1, 2]
    assert content["step"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_failed_write_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.pt"
    checkpoint.save(file, {"state_dict": {}, "step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WorkError, match=r"a\.pt: can.t be written .*No space"):
        checkpoint.save(file, {"state_dict": {}, "step": 2})
    assert checkpoint.load(file)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="gone"):
        checkpoint.save(tmp_path / "gone" / "a.pt", {})


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"PK\x03\x04" + bytes(60), bytes(1000)],
    ids=["empty", "text", "zip", "zeros"],
)
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pt: damaged or not a checkpoint file"):
        checkpoint.load(file)


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    checkpoint.save(file, {"state_dict": {"w": torch.zeros(1000)}})
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(file)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    file, marker = tmp_path / "a.pt", tmp_path / "ran"
    torch.save({"format": checkpoint.FORMAT, "state_dict": Payload(marker)}, file)
    for read in (checkpoint.load, checkpoint.load_weights, checkpoint.load_header):
        with pytest.raises(InputError, match="refused: it holds pickled Python objects"):
            read(file)
    assert not marker.exists()


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="not a medclip_oc checkpoint"):
        checkpoint.load(file)
    assert checkpoint.load_header(file) is None
    assert list(checkpoint.load_weights(file)) == ["w"]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"b\.pt: no such file"):
        checkpoint.load(tmp_path / "b.pt")


def test_bare_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": {"module.w": torch.ones(1)}, "epoch": 3}, tmp_path / "a.pt")
    assert list(checkpoint.load_weights(tmp_path / "a.pt")) == ["w"]
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors")
    assert list(checkpoint.load_weights(tmp_path / "a.safetensors")) == ["w"]
    torch.save({"epoch": 3}, tmp_path / "no.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        checkpoint.load_weights(tmp_path / "no.pt")
    (tmp_path / "b.safetensors").write_bytes(b"12345678rest")
    with pytest.raises(InputError, match="not a safetensors file"):
        checkpoint.load_weights(tmp_path / "b.safetensors")


def test_no_changed_byte_goes_unseen(tmp_path: Path) -> None:
    """torch.load itself takes a changed weight without a word; the archive's checksums don't."""
    file, weights = tmp_path / "a.pt", torch.arange(40.0)
    checkpoint.save(file, {"state_dict": {"w": weights}, "step": 4})
    written = file.read_bytes()
    start = written.index(weights.numpy().tobytes())
    for place in (start, start + 77, start + 159, written.index(b"step")):
        changed = bytearray(written)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(DamagedCheckpoint, match="a checksum differs"):
            checkpoint.load(file)
        assert checkpoint.load(file, verify=False)["format"] == checkpoint.FORMAT


def test_a_checkpoint_with_the_seal_of_earlier_versions(tmp_path: Path) -> None:
    """They ended in a comment of the zip archive with a hash, which nobody reads any more."""
    file = tmp_path / "a.pt"
    checkpoint.save(file, {"state_dict": {"w": torch.ones(1)}})
    comment = b"medclip_oc sha256 " + b"0" * 64
    file.write_bytes(file.read_bytes()[:-2] + len(comment).to_bytes(2, "little") + comment)
    assert checkpoint.load(file)["state_dict"]["w"] == 1


def test_a_checkpoint_is_still_an_archive_for_others(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    checkpoint.save(file, {"state_dict": {"w": torch.arange(40.0)}})
    assert zipfile.ZipFile(file).testzip() is None
    for mmap in (False, True):
        assert torch.load(file, weights_only=True, mmap=mmap)["state_dict"]["w"][39] == 39
