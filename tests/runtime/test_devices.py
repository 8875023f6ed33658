import pytest
import torch

from medclip_oc.errors import InputError, WorkError
from medclip_oc.runtime import devices

CPU = torch.device("cpu")


def test_precision() -> None:
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with devices.autocast(CPU, precision)():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_what_can_not_be_is_refused() -> None:
    with pytest.raises(InputError, match="fp16 needs CUDA"):
        devices.check_precision("fp16", CPU)
    with pytest.raises(WorkError, match="text features hold NaN"):
        devices.check_finite(torch.tensor([1, torch.inf]), "text")
    devices.check_finite(torch.ones(2), "text")
