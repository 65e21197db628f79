"""From prompts to scored experience: sampling, generation with a cache, and the forward passes that score a rollout."""
