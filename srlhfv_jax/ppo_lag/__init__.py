"""PPO-Lagrangian: one room for the heart of the package."""
