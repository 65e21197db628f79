"""The stages of the pipeline. Each has `run(settings, workdir) -> flat dict of numbers` and resumes by itself; they differ by an
update.

sft -> scores (or reward and cost) -> ppo_lag -> evaluate          quickstart runs them all on the embedded task
"""
