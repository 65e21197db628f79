"""Supervised stages: SFT, and reward and cost heads from pairs. `train` is the loop that they share."""
