"""Interventions on the weights of trained policies, as pure functions on parameter trees.

merge    policies between two
"""
