"""Time and memory until the first batch of a large set: made rows of PKU-SafeRLHF's size, read, checked and tokenised.

    python benchmarks/large_data.py [--rows=265000] [--layout=pku_saferlhf] [--packed] [--folder=FOLDER]

Prints one JSON object: seconds of opening (which checks every row), of `fit` (tokens) and of the first batch, and the peak of the
process's memory in GB. The rows are as long as those of PKU-SafeRLHF: a prompt of about 20 words and two answers of about 90. The
tokenizer is a byte-level BPE that is trained on some of them here, as fast as those of checkpoints.
"""

import gzip
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("rows", 265_000, "pairs", 1)
flags.DEFINE_boolean("packed", False, "write the file as .jsonl.gz")
flags.DEFINE_string("folder", "", "folder to write the rows to; empty: a temporary one")

WORDS = 30_000  # different ones, drawn as in a language: the k-th with probability ~ 1 / (k + 10)


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

    with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
        for number in range(count):
            flags_of = {f"is_response_{k}_safe": bool((number >> k) % 2) for k in (0, 1)}
            levels = {f"response_{k}_severity_level": 0 if flags_of[f"is_response_{k}_safe"] else 2 for k in (0, 1)}
            harms = {
                f"response_{k}_harm_category": {"Violence": not flags_of[f"is_response_{k}_safe"], "Drugs": False} for k in (0, 1)
            }
            row = {"prompt": text(16), "response_0": text(72), "response_1": text(72)} | flags_of | levels | harms
            row |= {"better_response_id": number % 2, "safer_response_id": 0 if flags_of["is_response_0_safe"] else 1}
            file.write(json.dumps(row) + "\n")


def tokenizer(path: Path):
    """A byte-level BPE of 32,000 tokens, trained on the first rows."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    core = ByteLevelBPETokenizer()
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        texts = [json.loads(line)["response_0"] for _, line in zip(range(5_000), file)]
    core.train_from_iterator(texts, vocab_size=32_000, special_tokens=["<s>", "</s>", "<pad>", "<unk>"], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def peak() -> float:
    """Most memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(path: Path) -> dict[str, float]:
    """Seconds and memory of each step."""
    from srlhfv_jax.data import loader, sources

    processor, before = tokenizer(path), peak()
    data = loader.single_pass(str(path), prompt_length=512, response_length=512, batch_size=32, workers=2)
    began, cpu = time.monotonic(), time.process_time()
    examples = sources.load_examples(data)
    opened = time.monotonic()
    prepared = loader.fit("pairs", examples, processor, data)
    fitted = time.monotonic()
    next(loader.batches(prepared, "pairs", None, data, seed=0))
    ended, cpu = time.monotonic(), time.process_time() - cpu
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
        "start_gb": before,
        "peak_gb": peak(),
    }


def main(_) -> None:
    """Write the rows, measure, print."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(FLAGS.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"pairs-{FLAGS.rows}.jsonl{'.gz' * FLAGS.packed}"
        if not path.exists():
            write(path, FLAGS.rows)
        print(json.dumps({name: round(value, 3) for name, value in measure(path).items()}))


if __name__ == "__main__":
    app.run(main)
