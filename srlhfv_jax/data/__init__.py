"""From files of rows to host batches. NumPy only: nothing here imports jax.

sources   rows of JSON lines, parquet or a TFDS folder, by number
rows      raw row -> Example; the only file that knows column names
drops     the named reasons for which a row is left out
images    picture bytes -> float pixels
chat      question -> prompt text, through the checkpoint's own chat template
tokens    Example -> token ids; every placeholder and length is checked here, before step 0
collate   token ids -> the padded arrays of batches.py
loader    shuffled, sharded, prefetched, resumable batches
tfds/     builders that write TFDS folders without TensorFlow
"""
