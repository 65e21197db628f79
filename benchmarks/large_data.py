"""Time and memory until the first batch of a large set: made rows of PKU-SafeRLHF's size, read, checked and tokenised.

    python benchmarks/large_data.py [--rows=265000] [--packed] [--folder=FOLDER]
    python benchmarks/large_data.py --rows=2000 --pictures [--decode_first] [--folder=FOLDER]

Prints one JSON object: seconds of opening (which checks every row), of `fit` (tokens) and of the first batch, seconds of CPU of all
three together (`cpu_s`) and of the one thread that runs Python (`main_cpu_s`), and the peak of the process's memory in GB. On two
cores that do nothing else the whole takes about main_cpu_s + (cpu_s - main_cpu_s) / 2.

The rows are as long as those of PKU-SafeRLHF: a prompt of about 20 words and two answers of about 90. The tokenizer is a byte-level
BPE that is trained on some of them here, as fast as those of checkpoints. With --pictures each row is a question and an answer about
a JPEG of its own, of 1024 x 768 pixels.
"""

import dataclasses
import gzip
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import IO

import numpy as np
from absl import app, flags
from PIL import Image

from srlhfv_jax.data.quickstart import processor as quickstart

FLAGS = flags.FLAGS
flags.DEFINE_integer("rows", 265_000, "pairs", 1)
flags.DEFINE_boolean("pictures", False, "rows with a picture in the place of pairs")
flags.DEFINE_boolean("decode_first", False, "decode all pictures before the first batch (data.decode_first)")
flags.DEFINE_boolean("packed", False, "write the file as .jsonl.gz")
flags.DEFINE_string("folder", "", "folder to write the rows to; empty: a temporary one")

WORDS = 30_000  # different ones, drawn as in a language: the k-th with probability ~ 1 / (k + 10)


def opened(path: Path, mode: str) -> IO[str]:
    return gzip.open(path, mode, compresslevel=1) if path.suffix == ".gz" else path.open(mode)


def words(rng: np.random.Generator) -> np.ndarray:
    """A made vocabulary."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    return np.array(["".join(rng.choice(letters, size)) for size in rng.integers(2, 10, WORDS)])


def write(path: Path, count: int) -> None:
    """Rows in the layout of PKU-SafeRLHF."""
    rng = np.random.default_rng(0)
    vocabulary = words(rng)
    odds = 1 / (np.arange(WORDS) + 10)
    stock = vocabulary[rng.choice(WORDS, 1 << 20, p=odds / odds.sum())]

    def text(mean: int) -> str:
        start, size = rng.integers(0, len(stock) - 4 * mean), int(rng.integers(mean // 2, 2 * mean))
        return " ".join(stock[start : start + size])

    with opened(path, "wt") as file:
        for number in range(count):
            flags_of = {f"is_response_{k}_safe": bool((number >> k) % 2) for k in (0, 1)}
            levels = {f"response_{k}_severity_level": 0 if flags_of[f"is_response_{k}_safe"] else 2 for k in (0, 1)}
            harms = {
                f"response_{k}_harm_category": {"Violence": not flags_of[f"is_response_{k}_safe"], "Drugs": False} for k in (0, 1)
            }
            row = {"prompt": text(16), "response_0": text(72), "response_1": text(72)} | flags_of | levels | harms
            row |= {"better_response_id": number % 2, "safer_response_id": 0 if flags_of["is_response_0_safe"] else 1}
            file.write(json.dumps(row) + "\n")


def write_pictures(path: Path, count: int) -> None:
    """Rows about pictures that lie beside the file: about 180 KB each, and no two the same."""
    rng = np.random.default_rng(0)
    soft = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize((1024, 768), Image.Resampling.BICUBIC)
    grainy = np.clip(np.asarray(soft) + rng.normal(0, 6, (768, 1024, 3)), 0, 255).astype(np.uint8)
    with opened(path, "wt") as file:
        for number in range(count):
            grainy[0, 0] = number % 256, number // 256 % 256, number // 65536
            Image.fromarray(np.roll(grainy, 8 * number, axis=1)).save(path.with_name(f"{number}.jpg"), quality=85)
            file.write(json.dumps({"question": "what is this ?", "response": "a knife .", "image": f"{number}.jpg"}) + "\n")


def tokenizer(path: Path):
    """A byte-level BPE of 32,000 tokens, trained on the first rows."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    core = ByteLevelBPETokenizer()
    with opened(path, "rt") as file:
        texts = [json.loads(line)["response_0"] for _, line in zip(range(5_000), file)]
    core.train_from_iterator(texts, vocab_size=32_000, special_tokens=["<s>", "</s>", "<pad>", "<unk>"], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def peak() -> float:
    """Most memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(path: Path, kind: str, processor) -> dict[str, float]:
    """Seconds and memory of each step."""
    from srlhfv_jax.data import loader, sources

    before = peak()
    data = loader.single_pass(str(path), prompt_length=512, response_length=512, batch_size=32, workers=2)
    data = dataclasses.replace(data, decode_first=FLAGS.decode_first)
    began, cpu, main_cpu = time.monotonic(), time.process_time(), time.thread_time()
    examples = sources.load_examples(data)
    opened = time.monotonic()
    prepared = loader.fit(kind, examples, processor, data)
    fitted = time.monotonic()
    next(loader.batches(prepared, kind, None, data, seed=0))
    ended, cpu, main_cpu = time.monotonic(), time.process_time() - cpu, time.thread_time() - main_cpu
    lengths = [len(ids) for row in prepared.rows[:1000] for ids in row.responses]
    return {
        "rows": len(prepared.rows),
        "file_gb": path.stat().st_size / 1e9,
        "response_tokens": float(np.mean(lengths)),
        "open_s": opened - began,
        "fit_s": fitted - opened,
        "first_batch_s": ended - fitted,
        "total_s": ended - began,
        "cpu_s": cpu,
        "main_cpu_s": main_cpu,
        "start_gb": before,
        "peak_gb": peak(),
    }


def main(_) -> None:
    """Write the rows, measure, print."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(FLAGS.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        kind, fill = ("supervised", write_pictures) if FLAGS.pictures else ("pairs", write)
        path = folder / f"{kind}-{FLAGS.rows}.jsonl{'.gz' * FLAGS.packed}"
        if not path.exists():
            fill(path, FLAGS.rows)
        processor = quickstart.processor(16) if FLAGS.pictures else tokenizer(path)
        print(json.dumps({name: round(value, 3) for name, value in measure(path, kind, processor).items()}))


if __name__ == "__main__":
    app.run(main)
