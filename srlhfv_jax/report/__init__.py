"""One self-contained report.html from a workdir: workdir (what is there) -> targets, plots, sections -> page -> build.

Reads files only (result.json, config.json, metrics.jsonl, samples.jsonl, score_distributions.json): no models, no jax. What a
workdir does not have is said on the page, not invented.
"""
