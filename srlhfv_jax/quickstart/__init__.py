"""The whole pipeline on the embedded task: `srlhfv quickstart`."""
