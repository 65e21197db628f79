"""Sampling from a policy.

generate    the tower and the prompt once, then one cached decoder step a token
refill      the same in slots: where an answer has ended, the next prompt is answered
sampling    one token from log-probabilities
layout      placement of the policy's weights while sampling
"""
