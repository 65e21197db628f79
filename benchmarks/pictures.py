"""Peak memory of one picture, decoded and cut as rows and requests are, by its shape; prints one JSON line for each.

    python benchmarks/pictures.py [--families=llava,llava_next] [--shapes=336x336,1x2400]

Every picture is read in a process of its own. `peak_mb`: what its resident memory grew by at most. `dropped`: the reason, where the
row would be a counted drop. Tiles are of the sizes that published checkpoints have.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
from types import SimpleNamespace

FAMILIES = ("llava", "llava_next", "smolvlm", "gemma3", "qwen2_vl")
SHAPES = ("336x336", "1x300", "1x2400", "2400x1", "1x100000", "100000x1", "3x40", "4000x3000", "8192x8192", "20000x20000")
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
SQUARE = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--families", default=",".join(FAMILIES))
    flags.add_argument("--shapes", default=",".join(SHAPES))
    flags.add_argument("--one", action="store_true", help="measure here: of each the first alone")
    given = flags.parse_args()
    families, shapes = given.families.split(","), given.shapes.split(",")
    if given.one:
        print(json.dumps(measured(families[0], shapes[0])))
        return
    for family in families:
        for shape in shapes:
            alone = [sys.executable, __file__, f"--families={family}", f"--shapes={shape}", "--one"]
            print(subprocess.run(alone, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


def measured(family: str, shape: str) -> dict:
    """Of one picture, in this process."""
    from srlhfv_jax.data import images, pictures
    from srlhfv_jax.data.drops import Unusable

    read, small = reader(family), encoded(30, 20)
    list(pictures.cut(read, [images.decode(small)]))  # what is imported and allocated once does not count
    width, height = map(int, shape.split("x"))
    content, before = encoded(width, height), peak_mb()
    found = {"family": family, "width": width, "height": height, "bytes": len(content)}
    try:
        image = images.decode(content)
        pictures.layout(read, (image.height, image.width))
        patches = next(iter(pictures.cut(read, [image])))
        found |= {"patches": len(patches)}
    except Unusable as unusable:
        found |= {"dropped": unusable.reason}
    return found | {"peak_mb": round(peak_mb() - before, 1)}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def encoded(width: int, height: int) -> bytes:
    """A PNG of one colour, written line by line so that writing it takes no memory."""
    import struct
    import zlib

    packer, packed = zlib.compressobj(1), io.BytesIO()
    for _ in range(height):
        packed.write(packer.compress(b"\0" + b"\x09\x50\xc8" * width))
    packed.write(packer.flush())
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + packed.getvalue(), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def reader(family: str):
    import transformers

    from srlhfv_jax.data import pictures

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
