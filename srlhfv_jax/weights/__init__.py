"""Interventions on the weights of trained policies, as pure functions on parameter trees.

merge        policies between two
patch        two policies of one base as patches of it
units        neurons and heads by what they serve
diagnose     where a change of weights lies
directions   of activations, from unsafe answers to safe ones
"""
