"""What a file carries besides its picture goes, whatever it is; no pixel changes."""

import pytest

from medclip_oc.errors import BadImage
from medclip_oc.imaging.decode import decode
from medclip_oc.imaging.encode import prepare, without_metadata
from medclip_oc.imaging.metadata import strip
from tests.support.image_files import FILES, carried, chunk, planted, segment

KEPT = ["grey", "colour", "chroma halved", "progressive", "CMYK", "PNG", "16 bits", "palette"]


@pytest.mark.parametrize("name", KEPT)
def test_all_goes_and_the_file_is_what_it_was_before(name: str) -> None:
    plain, parts = FILES[name], carried(FILES[name], b"Doe")
    assert strip(plain) == (plain, set())
    assert all(strip(planted(plain, it)) == (plain, {kind}) for kind, it in parts.items())
    assert strip(planted(plain, *parts.values()) + b"Doe") == (plain, {*parts, "after the end"})
    assert not any(strip(plain[:cut])[0] for cut in (*range(0, len(plain), 97), -1))  # no end


def test_what_decoding_needs_stays() -> None:
    data, scans = FILES["colour"], FILES["progressive"]
    place = scans.index(b"\xff\xda", scans.index(b"\xff\xda") + 2)  # between scans
    odd = scans[:place] + segment(0xFE, b"Doe") + b"\xff" + scans[place:]
    assert strip(odd) == (scans, {"comment", "other"})
    as_rgb = data[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\0") + data[20:]  # in place of JFIF
    assert strip(as_rgb) == (as_rgb, set())
    numbers = planted(FILES["palette"], chunk(b"gAMA", bytes(4)), chunk(b"pHYs", bytes(9)))
    assert strip(numbers) == (numbers, set())
    thumbnail = data[:2] + segment(0xE0, data[6:18] + b"\1\1abc") + data[20:]
    assert len(strip(thumbnail)[0]) < len(data)
    assert decode(strip(thumbnail)[0]).tobytes() == decode(thumbnail).tobytes()
    with pytest.raises(BadImage, match="pixels can't be told from its metadata"):
        without_metadata(prepare(FILES["PNG"][:-12]))  # readers do without its end
