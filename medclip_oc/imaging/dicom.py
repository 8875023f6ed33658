"""The picture in a DICOM file: 8 bits, grey ("L") or colour ("RGB"), by the rules in docs/data.md,
"Kinds of files". Needs pydicom 3; compressed pixels need a decoder that it knows: python-gdcm.

Only the elements in `READ` are read: what says who the patient is, is not even parsed.
"""

import io
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..errors import BadImage
from ..runtime.crash_isolation import call_isolated
from ..runtime.extras import needed

READ = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "VOILUTSequence"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "WindowCenter", "WindowWidth"),
    *("VOILUTFunction", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "BurnedInAnnotation"),
]
for _colour in ("Red", "Green", "Blue"):
    READ += [f"{_colour}PaletteColorLookupTable{part}" for part in ("Descriptor", "Data")]
    READ += [f"Segmented{_colour}PaletteColorLookupTableData"]
_OF_FRAMES = ("PixelValueTransformation", "FrameVOILUT", "PlanePosition", "PlaneOrientation")
_SECONDS = 600  # to decompress a frame; a JPEG 2000 of 89 megapixels needs about one minute
# an element, or a compression, in pydicom's words
_NAMED = re.compile(r"\([0-9A-F]{4},[0-9A-F]{4}\)( '[A-Za-z ]+')?|'(JPEG|MPEG|HEVC|RLE)[^']*'")
_AT_ONCE = 1 << 15  # values: in float64 a whole image would take eight times its bytes


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """Decode the first of `info["frames"]`: "L" or "RGB". `max_pixels` is the largest Rows times
    Columns. BadImage: no picture, truncated, over max pixels, undecodable. InputError: pydicom is
    not installed.
    """
    pydicom = needed("pydicom", "dicom")
    # pydicom warns wherever a file departs from the standard; what matters raises
    quiet = warnings.catch_warnings(action="ignore", category=UserWarning)
    with quiet, np.errstate(over="ignore"):  # a sigmoid's exp may be infinite
        try:
            # nothing in radiology writes that; pydicom would unpack it without bound
            if pydicom.uid.DeflatedExplicitVRLittleEndian.encode() in data:
                raise BadImage("undecodable", "a deflated DICOM file is not read")
            dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=[*READ], force=True)
            image = Image.fromarray(shown(dataset, stored_pixels(dataset, data, max_pixels)))
            image.info["frames"] = int(dataset.get("NumberOfFrames") or 1)
            image.info["burned_in"] = dataset.get("BurnedInAnnotation") == "YES"
            return image
        except BadImage:
            raise
        except Exception as error:  # a damaged file raises whatever pydicom trips over
            raise damage(error) from None


def damage(error: Exception, reader: str = "pydicom") -> BadImage:
    """Without the error's own words, which may quote a value: of any element, in a damaged file."""
    if isinstance(error, ChildProcessError | PermissionError):
        return BadImage("undecodable", error.strerror or str(error))
    if cut := re.search(r"\d+ (vs|bytes, got) \d+ bytes|file ended", str(error)):
        return BadImage("truncated", f"fewer pixels than its size says ({cut[0]})")
    named = _NAMED.search(str(error))
    what = f"{reader} can't use {named[0] if named else 'its header or its pixels'}"
    remedy = ": pip install 'medclip_oc[dicom]'" if "missing depend" in str(error) else ""
    return BadImage("undecodable", what + remedy)


def window(
    values: np.ndarray,
    *,
    limits: tuple[float, float] | None = None,
    counted: np.ndarray | None = None,
    inverted: bool = False,
) -> np.ndarray:
    """Map values to 0..255, linearly, never saturated: numbers of any shape -> uint8.

    `limits` become 0 and 255, and what is beyond them too; None: the darkest and the brightest
    value that counts. `inverted`: the brightest becomes 0. Where `counted` is False there is no
    image: that becomes 0, as NaN and infinities do, and one value alone.
    """
    kept = np.isfinite(values)
    if counted is not None:
        kept &= counted
    low, high = limits or (
        end.reduce(values, axis=None, dtype=np.float64, initial=beyond, where=kept)
        for end, beyond in ((np.minimum, np.inf), (np.maximum, -np.inf))
    )
    shown = kept.view(np.uint8)  # written over it, strip by strip
    if low == high or (limits is None and low > high):
        return np.zeros_like(shown)
    if inverted:
        low, high = high, low
    rows = max(1, _AT_ONCE // max(1, values[:1].size))
    for strip in (slice(n, n + rows) for n in range(0, len(values), rows)):
        numbers = (values[strip].astype(np.float64) - low) * (255.0 / (high - low))
        np.copyto(numbers, 0.0, where=~kept[strip])
        shown[strip] = np.rint(numbers.clip(0.0, 255.0))
    return shown


def by_value(function: Callable[[np.ndarray], np.ndarray], stored: np.ndarray) -> tuple[Any, Any]:
    """`made` and `where`, of which `made[where]` is `function(stored)`: worked out once for each
    value, of which 16 bits have few. It is to depend on nothing but which values there are.
    """
    if stored.dtype.kind not in "iu" or stored.itemsize > 2:
        return function(stored), ...
    lowest = stored.min()
    where = np.subtract(stored, lowest, dtype=np.uint16, casting="unsafe")  # can't overflow
    present = np.flatnonzero(np.bincount(where.ravel()))
    values = function((present + int(lowest)).astype(stored.dtype))
    made = np.repeat(values[:1], present[-1] + 1)  # between them, one that there is
    made[present] = values
    return made, where


def stored_pixels(
    dataset: Any, data: bytes, max_pixels: int, frame: int = 0, *, isolated: bool = False
) -> np.ndarray:
    """Pixels of a frame as stored, (H, W) or (H, W, 3); YBR as RGB. `isolated`: the caller is.

    Refuses what has no pixels, too many, or pixels that nothing here can decode.
    """
    from pydicom.pixels import get_decoder, pixel_array
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if rows and columns and rows * columns > max_pixels:
        raise BadImage("over max pixels", f"{columns} x {rows}, limit {max_pixels} pixels")
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        # pydicom drops compressed pixels that have no end
        if rows or b"\xe0\x7f\x10\0" in data:
            raise BadImage("truncated", "DICOM without whole pixels")
        raise BadImage("no picture", "a DICOM object without pixels: no image, or cut before them")
    if not (syntax := dataset.file_meta.get("TransferSyntaxUID")):
        implicit, _ = dataset.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    decode_frame = partial(pixel_array, dataset, index=frame)
    if isolated or get_decoder(syntax).is_native:
        return decode_frame()
    return call_isolated(decode_frame, _SECONDS)  # damage makes GDCM abort, pydicom loop for ever


def shown(dataset: Any, stored: np.ndarray) -> np.ndarray:
    """Stored pixels as they are displayed: (H, W) or (H, W, 3) uint8."""
    from pydicom.pixels import apply_color_lut

    dataset = with_groups(dataset, 0)
    space = dataset.PhotometricInterpretation
    if space in ("MONOCHROME1", "MONOCHROME2"):
        made, where = by_value(partial(_grey, dataset, inverted=space == "MONOCHROME1"), stored)
        return made[where]
    if space == "PALETTE COLOR":
        count, first, _ = dataset.RedPaletteColorLookupTableDescriptor
        last = first + (count or 65536) - 1
        brightest = int(apply_color_lut(np.arange(first, last + 1), dataset).max())
        pixels = apply_color_lut(stored.astype(np.int64).clip(first, last), dataset)
        return window(pixels, limits=(0, brightest)) if brightest > 255 else pixels.astype(np.uint8)
    if space != "RGB" and not space.startswith("YBR"):
        raise BadImage("undecodable", "DICOM of a colour space that isn't read")
    return stored if stored.dtype == np.uint8 else window(stored)


def with_groups(dataset: Any, frame: int) -> Any:
    """Enhanced objects keep rescale, window and place in groups: put those of a frame on top."""
    for groups, n in (("PerFrame", frame), ("Shared", 0)):
        group = (dataset.get(f"{groups}FunctionalGroupsSequence") or {n: {}})[n]
        for name in _OF_FRAMES:
            for element in (group.get(f"{name}Sequence") or [()])[0]:
                if element.tag not in dataset:
                    dataset.add(element)
    for name in ("RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit"):
        if name in dataset and dataset[name].is_empty:
            del dataset[name]
    return dataset


def _grey(dataset: Any, stored: np.ndarray, *, inverted: bool) -> np.ndarray:
    """Modality LUT or rescale, then VOI LUT or window; their real range where that is unusable."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    counted, values = ~padding(dataset, stored), stored
    if dataset.get("ModalityLUTSequence"):
        values = _indices(dataset.ModalityLUTSequence[0], values)
    values = apply_modality_lut(values, dataset)
    tables, limits = dataset.get("VOILUTSequence"), None
    with_table = bool(tables and tables[0].get("LUTDescriptor") and tables[0].get("LUTData"))
    if with_table or all(dataset.get(name) is not None for name in ("WindowCenter", "WindowWidth")):
        before, probes = values, np.array([-np.inf, np.inf])
        if with_table:
            before = _indices(tables[0], np.rint(values))
            probes = _indices(tables[0], np.arange(-(1 << 15), 1 << 17))
        try:
            shown, ends = (apply_voi_lut(each, dataset) for each in (before, probes))
        except ValueError:  # a width or function that the standard doesn't allow
            return window(values, counted=counted, inverted=inverted)
        kept = shown[counted]
        if kept.size and kept.min() != kept.max():
            values = shown
            limits = (ends.min(), ends.max()) if with_table else (ends[0], ends[1])
    return window(values, limits=limits, counted=counted, inverted=inverted)


def padding(dataset: Any, stored: np.ndarray) -> np.ndarray:
    """Where there is no image: bool of the same shape."""
    first = dataset.get("PixelPaddingValue")
    if not isinstance(first, int):
        return np.zeros(stored.shape, dtype=bool)
    last = dataset.get("PixelPaddingRangeLimit", first)
    if stored.dtype.kind == "i":  # some scanners write -2000 as the unsigned 63536
        first, last = (n - 65536 if 32767 < n < 65536 else n for n in (first, last))
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _indices(table: Any, values: np.ndarray) -> np.ndarray:
    """Values as pydicom can look them up in a LUT: within it, and in a type that holds them.

    pydicom keeps indices in the type of the pixels, or of the table's entries, where large ones
    wrap around; and takes odd depths for the name of a type. Entries are never narrower than 16
    bits there.
    """
    count, first, _ = table.LUTDescriptor
    table.LUTDescriptor = [count, first, 16]
    return values.astype(np.int64).clip(first, first + (count or 65536) - 1)
