"""The whole pipeline on the embedded task: `srlhfv quickstart`.

run         the pipeline, then its targets and its report
pipeline    stages, their folders and settings
probes      knowledge of the learned reward and cost models
guard       the guard on held-out rows, and in front of each policy
compare     other methods beside PPO-Lagrangian: the order of work, and the result
methods     the table of methods, and that of interventions
kinds       kinds of methods: the stage of each
measures    what a method goes on from, and what is measured of its policy
interventions    its policy goes on with harmless rows, with and without units that stand still
revising    activation revision of several strengths
patching    SafePatching from the same pairs
"""
