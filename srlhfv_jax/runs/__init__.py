"""Parts that every run shares: start, rows, checkpoints, export, finish."""
