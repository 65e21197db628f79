"""Comparing policies: answers in, flat dicts of numbers out.

answers (what a policy said) -> oracle (the embedded task's closed-form verdicts), judges (learned reward and cost), quadrants
(one policy against another) and pairs (how good the learned models themselves are) -> compare (everything for one result.json)
-> records (the files the report reads). `policies` samples the answers. NumPy throughout; models come in as callables.
"""
