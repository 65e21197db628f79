"""The whole pipeline on the embedded task: `srlhfv quickstart`.

run         the pipeline, then its targets and its report
pipeline    stages, their folders and settings
probes      knowledge of the learned reward and cost models
guard       the guard on held-out rows, and in front of each policy
compare     other methods on the same pairs, beside PPO-Lagrangian
interventions    its policy goes on with harmless rows, with and without units that stand still
revising    activation revision of several strengths
"""
