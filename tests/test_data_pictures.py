"""What a picture's size promises, its pixels keep: patches, placeholders and limits of every family, for pictures of any shape."""

import io

import numpy as np
import pytest
import tiny_hf
from PIL import Image, PngImagePlugin

from srlhfv_jax.batches import NEWLINE
from srlhfv_jax.data import images, pictures
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.errors import UserError

FAMILIES = ("llava", "llava_next", "qwen2_vl", "smolvlm", "idefics3", "gemma3")
SIZES = [(int(h), int(w)) for h, w in np.random.default_rng(0).integers(9, 90, (40, 2))]


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layout_counts_the_patches_that_are_cut(family):
    reader = pictures.reader(tiny_hf.processor(family))
    for size in SIZES:
        layout = pictures.layout(reader, size)
        assert next(pictures.cut(reader, [picture(size)])).shape == (layout.patches, reader.values), size
        if layout.order_M is not None:
            assert layout.placeholders == len(layout.order_M) and layout.order_M.max() < layout.patches
        if layout.text:
            assert layout.text.count(reader.image_token) == layout.placeholders


@pytest.mark.parametrize("family", FAMILIES)
def test_several_pictures_are_cut_as_one_is(family, monkeypatch):
    reader, shown = pictures.reader(tiny_hf.processor(family)), [picture(size) for size in SIZES[:7]]
    monkeypatch.setattr(pictures, "PIXELS_AT_ONCE", sum(image.width * image.height for image in shown[:3]))
    together = list(pictures.cut(reader, iter(shown)))
    for patches, image in zip(together, shown, strict=True):
        np.testing.assert_array_equal(patches, next(pictures.cut(reader, [image])))


def test_llava_next_has_as_many_placeholders_as_its_own_processor_writes():
    processor = tiny_hf.processor("llava_next")
    reader = pictures.reader(processor)
    for size in SIZES:
        ids = processor(text="<image>", images=picture(size))["input_ids"][0]
        assert pictures.layout(reader, size).placeholders == list(ids).count(tiny_hf.IMAGE_TOKEN), size


def test_the_lines_of_a_wide_picture_end_and_its_padding_is_gone():
    """Two tiles of 3 x 3 features side by side; the picture fills the middle line of the three."""
    reader = pictures.reader(tiny_hf.processor("llava_next"))
    order_M = pictures.layout(reader, (12, 40)).order_M
    np.testing.assert_array_equal(order_M, [*range(9), 12, 13, 14, 21, 22, 23, NEWLINE])


@pytest.mark.parametrize(
    ("family", "most"), [("llava_next", 12 * 24), ("qwen2_vl", 200), ("smolvlm", 14 * 14), ("idefics3", 400)]
)
def test_a_limit_on_pixels_holds_for_every_shape(family, most):
    whole = pictures.reader(tiny_hf.processor(family))
    reader = pictures.limited(whole, most)
    tile = whole.side**2  # the picture as a whole comes on top
    for size in SIZES:
        layout = pictures.layout(reader, size)
        assert next(pictures.cut(reader, [picture(size)])).shape[0] == layout.patches
        if layout.grid is None or min(layout.grid) > reader.merge:  # no side is shorter than one square of patches
            assert (layout.patches - tile) * whole.patch**2 <= most
        assert layout.patches <= pictures.layout(whole, size).patches
    with pytest.raises(UserError, match="data.max_pixels must be at least"):
        pictures.limited(whole, 60)


def test_a_limit_is_refused_where_all_pictures_have_one_size():
    for family in ("llava", "gemma3"):
        reader = pictures.reader(tiny_hf.processor(family))
        assert pictures.limited(reader, 0) is reader
        with pytest.raises(UserError, match="data.max_pixels 100 would be ignored"):
            pictures.limited(reader, 100)


def test_the_size_of_a_picture_is_that_of_the_picture_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = 6
    picture((20, 50)).save(tmp_path / "lying.jpg", exif=exif)
    encoded = (tmp_path / "lying.jpg").read_bytes()
    assert images.upright_size(encoded) == (50, 20) == images.decode(encoded).size[::-1]


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture((20, 50)).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[images.EXIF_ORIENTATION] = orientation
    return made


def with_text(name: str, text: str) -> PngImagePlugin.PngInfo:
    made = PngImagePlugin.PngInfo()
    made.add_itxt(name, text)
    return made


def late_orientation(whole: bytes) -> bytes:
    """The same PNG with its eXIf chunk between the pixels and the end."""
    start = whole.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(whole[start : start + 4], "big")
    return whole[:start] + whole[stop:-12] + whole[start:stop] + whole[-12:]


WAYS_UP = {
    "jpeg": encoded("JPEG", exif=exif(8)),
    "webp": encoded("WEBP", exif=exif(6)),
    "png": encoded("PNG", exif=exif(6)),
    "png, late": late_orientation(encoded("PNG", exif=exif(6))),
    "png, xmp": encoded("PNG", pnginfo=with_text("XML:com.adobe.xmp", '<x tiff:Orientation="5"/>')),
    "png, upside down": encoded("PNG", exif=exif(3)),
    "png, words": encoded("PNG", pnginfo=with_text("Software", "a camera")),
    "gif": encoded("GIF"),
    "bmp": encoded("BMP"),
}


@pytest.mark.parametrize("way", WAYS_UP)
def test_the_size_that_a_header_says_is_that_of_the_decoded_picture(way):
    lies = way in ("jpeg", "webp", "png", "png, late", "png, xmp")
    assert images.upright_size(WAYS_UP[way]) == images.decode(WAYS_UP[way]).size[::-1] == ((50, 20) if lies else (20, 50))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_whole_picture_is_checked_and_measured_without_decoding_it(kind, monkeypatch):
    monkeypatch.setattr(images, "decode", None)
    images.check(encoded(kind))
    assert images.upright_size(encoded(kind)) == (20, 50)


def fault(check, content: bytes) -> tuple[str, str] | None:
    try:
        check(content)
    except Unusable as unusable:
        return unusable.reason, unusable.detail
    return None


@pytest.mark.parametrize("kind", images.FORMATS)
def test_a_picture_that_was_cut_off_is_found_without_decoding_whole_ones(kind):
    """For the reason, and with the words, that decoding gives."""
    whole = encoded(kind)
    faults = [fault(images.check, whole[:length]) for length in range(len(whole))]
    assert faults == [fault(images.decode, whole[:length]) for length in range(len(whole))]
    assert faults.count(None) <= 30 and fault(images.check, whole) is None  # an end that says nothing may be missing


@pytest.mark.parametrize("kind", images.FORMATS)
def test_no_picture_that_decodes_fails_the_check(kind):
    whole, rng = encoded(kind), np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(whole)
        content[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        found = fault(images.check, bytes(content))
        assert found is None or found == fault(images.decode, bytes(content))


@pytest.mark.parametrize("size", [(8, 100), (100, 8), (10, 200), (1, 50), (24, 24), (20, 30)])
def test_a_strip_is_read_as_the_whole_processor_reads_it_and_little_of_it_is_resized(size, monkeypatch):
    """The shorter side becomes 24 pixels and the middle is kept: what lies further out than seven tiles is cut away before."""
    reader = pictures.reader(tiny_hf.processor("llava"))
    shortest, seen = reader.image_processor.size["shortest_edge"], []
    whole = next(pictures.cut(reader, [picture(size)]))
    monkeypatch.setattr(pictures, "RESIZED_PIXELS", 7 * shortest**2)
    watched = reader._replace(image_processor=Watched(reader.image_processor, seen))
    np.testing.assert_array_equal(next(pictures.cut(watched, [picture(size)])), whole)
    assert max(seen[0]) <= 7 * min(size) and (seen[0] == size) == (max(size) <= 7 * min(size))


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (2, 60_000), (90, 40_000)])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_picture_that_is_decoded_becomes_more_than_a_few_million_pixels(family, size):
    """A PNG of 467 bytes may have 1 x 100,000 pixels: with its shorter side made 336 it would take 110 GB."""
    reader = pictures.reader(tiny_hf.processor(family))
    try:
        layout = pictures.layout(reader, size)
    except Unusable as unusable:
        assert unusable.reason == "image_too_narrow"
        return
    seen: list[tuple[int, int]] = []
    shortest = reader.image_processor.size.get("shortest_edge", 1) if family == "llava" else 1
    watched = reader._replace(image_processor=Watched(reader.image_processor, seen))
    shown = Image.new("RGB", size[::-1])
    assert next(pictures.cut(watched, [shown])).shape == (layout.patches, reader.values)
    assert shortest**2 * max(seen[0]) / min(seen[0]) <= pictures.RESIZED_PIXELS or family != "llava"


class Watched:
    """An image processor that notes the sizes of what it is given."""

    def __init__(self, processor, seen):
        self.size, self._processor, self._seen = processor.size, processor, seen

    def __call__(self, images, **how):
        self._seen += [(image.height, image.width) for image in images]
        return self._processor(images=images, **how)


def test_pixels_are_those_of_the_checkpoints_image_processor():
    from tiny_data import PATCH, SIZE, png, processor

    image = images.decode(png(5))
    expected = processor()(images=image, text="<image>", return_tensors="np")["pixel_values"][0]
    got = next(pictures.cut(pictures.reader(processor()), [image]))
    n = SIZE // PATCH
    assert got.dtype == np.float32 and got.shape == (n * n, 3 * PATCH * PATCH)
    by_patch = got.reshape(n, n, 3, PATCH, PATCH)
    for y in range(n):
        for x in range(n):
            np.testing.assert_array_equal(by_patch[y, x], expected[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH])
