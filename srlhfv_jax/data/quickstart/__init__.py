"""The embedded task "Look before you answer": pictures, questions, a closed answer grammar and oracles. NumPy and PIL only."""
