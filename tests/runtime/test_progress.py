import pytest

from medclip_oc.runtime.progress import rate


@pytest.mark.parametrize(
    ("per_second", "shown"), [(1234.5, "1,234"), (10.2, "10"), (1.234, "1.2"), (0.0321, "0.032")]
)
def test_a_rate_has_digits_however_small(per_second: float, shown: str) -> None:
    assert rate(per_second) == shown
