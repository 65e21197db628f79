"""A LLaVA-style vision-language model as pure functions of (config, params), its score heads, and the roles of PPO-Lagrangian."""
