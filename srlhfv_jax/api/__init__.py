"""The stages from Python: `import srlhfv_jax as sv`, rows in memory, functions as rewards and costs.

    result = sv.ppo_lag(policy="W/sft", reward=f, cost=g, prompts=rows, workdir="W/own", iterations=50)
    result.numbers, result.path, result.metrics(), result.report(), result.sample(rows[:3])
    sv.load("W/own").generate(rows), sv.load("W/scores").score(rows), sv.load("W/guard").check(rows)

Nothing is imported before a function is called: importing the package starts no JAX. A mistake is a UserError of one line.

stages     sft, scores, guard, ppo_lag; the result of a stage
model      load: a policy that answers, a scorer, a guard
settings   config: a preset with changed values
rows       paths and dicts. Those that a stage is given go through a file in the workdir, from which a run that goes on reads them again
"""
