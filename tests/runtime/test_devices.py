import pytest
import torch

from medclip_oc.errors import InputError, WorkError
from medclip_oc.runtime import devices

CPU = torch.device("cpu")


def test_what_a_graph_holds_grows_with_the_rows_and_not_with_the_weights() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(10, 1000), torch.nn.ReLU())
    assert devices.graph_bytes(layers, torch.zeros(8, 10)) == 4 * 1000
    with torch.no_grad():
        assert devices.graph_bytes(layers, torch.zeros(8, 10)) == 0


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision(precision: str, dtype: torch.dtype) -> None:
    with devices.autocast(CPU, precision)():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_what_can_not_be_is_refused() -> None:
    with pytest.raises(InputError, match="fp16 needs CUDA"):
        devices.check_precision("fp16", CPU)
    with pytest.raises(WorkError, match="text features hold NaN"):
        devices.check_finite(torch.tensor([1, torch.inf]), "text")
    devices.check_finite(torch.ones(2), "text")
