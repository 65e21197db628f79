"""Supervised stages.

sft                   the more helpful answer
scores                reward and cost heads from preference pairs (`reward` and `cost`: one of them)
train                 the loop that they share
stages                what the commands have to know of them
curves                their curves in the report
"""
