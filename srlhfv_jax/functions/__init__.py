"""Rewards and costs by functions of one's own: `f(samples) -> list of numbers`, called on the host, between rollout and update.

sample       what a function is given
conditions   the rows that a constraint is about
answers      terms about the answer itself: its length, whether it declines
load         functions by the terms of a reward and a cost, from files or from Python
identity     a function's identity by content, for the cache and for several processes
call         calls in threads, with a time-out and attempts
cache        scores by content
score        the rows of a rollout, scored: each process its own
moderation   moderation models behind an endpoint, for costs
replies      what they reply: Llama Guard, ShieldGemma, Qwen3Guard
"""

from srlhfv_jax.functions.sample import Sample

__all__ = ["Sample"]
