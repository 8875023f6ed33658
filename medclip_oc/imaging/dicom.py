"""The picture in a DICOM file: 8 bits, grey ("L") or colour ("RGB"). Needs pydicom 3.

A file is DICOM if "DICM" stands at byte 128, whatever its name; what lacks that mark is not, as for
pydicom itself. The rules:

- The first frame of many.
- Grey: modality LUT or rescale; then the VOI LUT, else the first window; what it shows darkest
  becomes 0, what it shows brightest 255. Without one, and where it is unusable (a width under 1;
  one value for the whole image), the real range of the values. MONOCHROME1 is inverted. Padding
  doesn't count for the range and becomes black.
- PALETTE COLOR goes through its palette; YBR becomes RGB. Colour of more than 8 bits is windowed by
  its real range, all channels alike; a palette of more than 8 bits by its brightest entry.
- Enhanced (multi-frame) objects: rescale and window of the first frame, or the shared ones.
- Overlays, shutters, presentation LUTs, colour profiles and pixel aspect ratios are ignored.

Compressed pixels need a decoder that pydicom knows: python-gdcm. Only the elements in `_READ` are
read: what says who the patient is, is not even parsed.
"""

import io
import warnings
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..errors import BadImage, InputError
from ..runtime.crash_isolation import call_isolated
from .depth import window

INSTALL = "pip install pydicom python-gdcm"

_READ = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "VOILUTSequence"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "WindowCenter", "WindowWidth"),
    *("VOILUTFunction", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
]
for _colour in ("Red", "Green", "Blue"):
    _READ += [f"{_colour}PaletteColorLookupTable{part}" for part in ("Descriptor", "Data")]
    _READ += [f"Segmented{_colour}PaletteColorLookupTableData"]
_SECONDS = 600
"""To decompress a frame. A JPEG 2000 of 89 megapixels needs about one minute."""
_OF_FRAME = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
"""A transfer syntax that nothing in radiology writes; pydicom would unpack it without bound."""


def is_dicom(data: bytes) -> bool:
    """Whether a file has the mark of DICOM."""
    return data[128:132] == b"DICM"


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """Decode the first frame by the rules at the top of this module.

    Args:
        data: the whole file.
        max_pixels: largest Rows times Columns; seen before anything is decoded.

    Returns:
        An image of mode "L" or "RGB". It carries nothing but pixels.

    Raises:
        BadImage: no pixels, truncated, over max pixels, not decodable.
        InputError: pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError:
        raise InputError(f"a DICOM file needs pydicom: {INSTALL}") from None
    with warnings.catch_warnings():
        # pydicom warns wherever a file departs from the standard; what matters raises
        warnings.simplefilter("ignore", UserWarning)
        try:
            if _DEFLATED in data[132 : 144 + int.from_bytes(data[140:144], "little")]:
                raise BadImage("undecodable", "a deflated DICOM file is not read")
            dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=[*_READ])
            _check(dataset, data, max_pixels)
            return _picture(dataset)
        except BadImage:
            raise
        except Exception as error:  # a damaged file raises whatever pydicom trips over
            cut = "less than expected" in str(error)
            words = " ".join(str(error).split())[:300] or type(error).__name__
            raise BadImage("truncated" if cut else "undecodable", words) from None


def _check(dataset: Any, data: bytes, max_pixels: int) -> None:
    """Refuse what has no pixels, too many, or pixels that nothing here can decode."""
    from pydicom.pixels import get_decoder

    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if rows and columns and rows * columns > max_pixels:
        raise BadImage("over max pixels", f"{columns} x {rows}, limit {max_pixels} pixels")
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        # pydicom drops compressed pixels that have no end
        cut = b"\xe0\x7f\x10\0" in data
        raise BadImage("truncated" if cut else "undecodable", "DICOM without whole pixels")
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if not syntax:
        raise BadImage("undecodable", "DICOM that names no transfer syntax")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise BadImage("undecodable", f"transfer syntax {syntax.name} is not supported") from None
    if not decoder.is_available:
        missing = "; ".join(decoder.missing_dependencies)
        hint = f" ({INSTALL})" if "gdcm" in missing else ""
        raise BadImage("undecodable", f"{syntax.name} needs another package: {missing}{hint}")


def _picture(dataset: Any) -> Image.Image:
    from pydicom.pixels import apply_color_lut

    _take_from_groups(dataset)
    pixels, colours = _pixels(dataset), dataset.PhotometricInterpretation
    if colours in ("MONOCHROME1", "MONOCHROME2"):
        return Image.fromarray(_grey(dataset, pixels, inverted=colours == "MONOCHROME1"))
    if colours == "PALETTE COLOR":
        count, first, _ = dataset.RedPaletteColorLookupTableDescriptor
        last = first + (count or 65536) - 1
        palette = apply_color_lut(np.arange(first, last + 1), dataset)  # (entries, 3)
        pixels = apply_color_lut(pixels.astype(np.int64).clip(first, last), dataset)
        if palette.max() > 255:
            pixels = window(pixels, limits=(0, int(palette.max())))
        return Image.fromarray(pixels.astype(np.uint8))
    if colours != "RGB" and not colours.startswith("YBR"):
        raise BadImage("undecodable", f"DICOM of colour space {colours}")
    return Image.fromarray(pixels if pixels.dtype == np.uint8 else window(pixels))


def _pixels(dataset: Any) -> np.ndarray:
    """The first frame as stored, (H, W) or (H, W, 3); YBR as RGB."""
    from pydicom.pixels import get_decoder, pixel_array

    decode = partial(pixel_array, dataset, index=0)
    if get_decoder(dataset.file_meta.TransferSyntaxUID).is_native:
        return decode()
    # damaged frames make GDCM abort and pydicom loop for ever
    return call_isolated(decode, _SECONDS)


def _take_from_groups(dataset: Any) -> None:
    """Enhanced objects keep rescale and window in groups: put those of the first frame on top."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for name in _OF_FRAME if dataset.get(groups) else ():
            for element in (dataset[groups][0].get(name) or [()])[0]:
                if element.tag not in dataset:
                    dataset.add(element)
    for name in ("RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit"):
        if name in dataset and dataset[name].is_empty:
            del dataset[name]


# -------------------------------------------------------------------------------------------- grey


def _grey(dataset: Any, stored: np.ndarray, *, inverted: bool) -> np.ndarray:
    """Stored values as they are displayed: (H, W) uint8."""
    from pydicom.pixels import apply_modality_lut

    image = ~_padding(dataset, stored)
    values = stored
    if dataset.get("ModalityLUTSequence"):
        values = _indices(dataset.ModalityLUTSequence[0], values)
    values = apply_modality_lut(values, dataset)
    if shown := _shown(dataset, values, image):
        return window(shown[0], limits=shown[1], counted=image, inverted=inverted)
    return window(values, counted=image, inverted=inverted)


def _padding(dataset: Any, stored: np.ndarray) -> np.ndarray:
    """Where there is no image: bool of the same shape."""
    first = dataset.get("PixelPaddingValue")
    if not isinstance(first, int):
        return np.zeros(stored.shape, dtype=bool)
    last = dataset.get("PixelPaddingRangeLimit", first)
    if stored.dtype.kind == "i":  # some scanners write -2000 as the unsigned 63536
        first, last = (n - 65536 if 32767 < n < 65536 else n for n in (first, last))
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _shown(
    dataset: Any, values: np.ndarray, image: np.ndarray
) -> tuple[np.ndarray, tuple[float, float]] | None:
    """Values after the VOI LUT or window, and what it makes darkest and brightest.

    None: there is none, or it is unusable.
    """
    from pydicom.pixels import apply_voi_lut

    tables = dataset.get("VOILUTSequence")
    if tables and tables[0].get("LUTDescriptor") and tables[0].get("LUTData"):
        values = _indices(tables[0], np.rint(values))
        count, first, _ = tables[0].LUTDescriptor
        probes = np.arange(first, first + (count or 65536))
        brightness = apply_voi_lut(probes, dataset)
        limits = float(brightness.min()), float(brightness.max())
    elif any(dataset.get(name) is None for name in ("WindowCenter", "WindowWidth")):
        return None
    else:
        try:
            limits = tuple(_windowed(dataset, np.array([-np.inf, np.inf])).tolist())
        except ValueError:  # a width or function that the standard doesn't allow
            return None
    shown = _windowed(dataset, values)
    kept = shown[image]
    if not kept.size or kept.min() == kept.max():
        return None
    return shown, limits


def _windowed(dataset: Any, values: np.ndarray) -> np.ndarray:
    from pydicom.pixels import apply_voi_lut

    with np.errstate(over="ignore"):  # far out on a sigmoid: exp is infinite, which is right
        return apply_voi_lut(values, dataset)


def _indices(table: Any, values: np.ndarray) -> np.ndarray:
    """Values as pydicom can look them up in a LUT: within it, and in a type that holds them.

    pydicom keeps indices in the type of the pixels, or of the table's entries, where large ones
    wrap around; and takes odd depths for the name of a type. Entries are never narrower than 16
    bits there.
    """
    count, first, _ = table.LUTDescriptor
    table.LUTDescriptor = [count, first, 16]
    return values.astype(np.int64).clip(first, first + (count or 65536) - 1)
