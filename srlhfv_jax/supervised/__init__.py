"""Supervised stages.

sft                   the more helpful answer
scores                reward and cost heads from preference pairs (`reward` and `cost`: one of them)
train                 the loop that they share
watch                 the same few prompts, answered while `sft` goes on
stages                their records: what commands, cards, report and plan know of them
"""
