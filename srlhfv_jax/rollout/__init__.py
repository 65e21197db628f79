"""Sampling from a policy.

generate    the tower and the prompt once, then one cached decoder step a token
sampling    one token from log-probabilities
layout      placement of the policy's weights while sampling
"""
