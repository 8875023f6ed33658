"""Tars byte by byte: the short way to a header leads to the bytes of the standard library."""

import tarfile

from hypothesis import given
from hypothesis import strategies as st

from medclip_oc.packing.tar_writer import tar_header

NAMES = st.one_of(
    st.text(st.characters(codec="ascii", exclude_characters="\0/"), min_size=1, max_size=130),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1),
)
SIZES = st.one_of(st.integers(0, 1 << 20), st.integers(8**11 - 2, 8**11 + 2))


@given(NAMES, SIZES)
def test_a_header_is_that_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    assert tar_header(name, size) == info.tobuf(tarfile.PAX_FORMAT)
