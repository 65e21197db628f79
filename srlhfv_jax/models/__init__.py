"""The model: a LLaVA-style vision-language model as pure functions of (config, params), score heads, and the roles of PPO-Lagrangian."""
