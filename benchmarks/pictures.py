"""Peak memory of one picture, decoded and cut as rows and requests are, by its shape; prints one JSON line for each.

    python benchmarks/pictures.py [--families=llava,llava_next] [--shapes=336x336,1x2400]

Every picture is read in a process of its own. `peak_mb`: by how much its resident memory grew at most. `dropped`: the reason, where the
row would be a counted drop. Tiles are of the sizes that published checkpoints have.
"""

import argparse
import io
import json
import multiprocessing
import resource
import struct
import zlib
from types import SimpleNamespace

import transformers

from srlhfv_jax.data import images, pictures
from srlhfv_jax.data.drops import Unusable

FAMILIES = ("llava", "llava_next", "smolvlm", "gemma3", "qwen2_vl")
SHAPES = ("336x336", "1x300", "1x2400", "2400x1", "1x100000", "100000x1", "3x40", "4000x3000", "8192x8192", "20000x20000")
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
SQUARE = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--families", default=",".join(FAMILIES))
    flags.add_argument("--shapes", default=",".join(SHAPES))
    given = flags.parse_args()
    fork = multiprocessing.get_context("fork")
    for family in given.families.split(","):
        read = reader(family)
        list(pictures.cut(read, [images.decode(encoded(30, 20))]))  # what is imported and allocated once does not count
        for shape in given.shapes.split(","):
            alone = fork.Process(target=measure, args=(read, *map(int, shape.split("x"))))
            alone.start()
            alone.join()


def measure(read: pictures.Reader, width: int, height: int) -> None:
    """Print the line of one picture."""
    content, before = encoded(width, height), peak_mb()
    numbers = {"family": read.family, "width": width, "height": height, "bytes": len(content)}
    try:
        image = images.decode(content)
        pictures.layout(read, (image.height, image.width))
        numbers |= {"patches": len(next(iter(pictures.cut(read, [image]))))}
    except Unusable as unusable:
        numbers |= {"dropped": unusable.reason}
    print(json.dumps(numbers | {"peak_mb": round(peak_mb() - before, 1)}), flush=True)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def encoded(width: int, height: int) -> bytes:
    """A PNG of one colour, written line by line so that writing it takes no memory."""
    packer, packed = zlib.compressobj(1), io.BytesIO()
    for _ in range(height):
        packed.write(packer.compress(b"\0" + b"\x09\x50\xc8" * width))
    packed.write(packer.flush())
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + packed.getvalue(), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def reader(family: str) -> pictures.Reader:
    """As the processors of published checkpoints of the family are."""
    if family == "llava":
        images = transformers.CLIPImageProcessorPil(**SQUARE)
        return pictures.Reader(family, images, "<image>", "<image>", 14, 24, 576, 1, 3 * 14**2)
    if family == "llava_next":
        images = transformers.LlavaNextImageProcessorPil(**SQUARE, image_grid_pinpoints=PINPOINTS)
        pinpoints = tuple(map(tuple, PINPOINTS))
        return pictures.Reader(family, images, "<image>", "<image>", 14, 24, 576, 1, 3 * 14**2, pinpoints)
    words = SimpleNamespace(special_tokens_map={"boi_token": "<boi>", "eoi_token": "<eoi>"})
    if family == "smolvlm":
        images = transformers.SmolVLMImageProcessorPil(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512})
        return pictures.reader(pictures.Bundle(words, images, "<image>", family, 16, 4))
    if family == "gemma3":
        images = transformers.Gemma3ImageProcessorPil(size={"height": 896, "width": 896})
        return pictures.reader(pictures.Bundle(words, images, "<image>", family, 14, 4))
    return pictures.reader(pictures.Bundle(words, transformers.Qwen2VLImageProcessorPil(), "<image>", family, 14, 2))


if __name__ == "__main__":
    main()
