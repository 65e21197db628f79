"""The one loop, and what a step is made of.

loop, progress         resume, step, log, evaluate, save, stop; the line that shows it
best                   which evaluation is the best, and how long a better one is waited for
step                   gradients of sums over microbatches, one division, the optimizer
units                  weights of units that stand still, or that alone are trained
optimizer, state       AdamW and Muon; state and random keys
metrics, compiles      numbers in files; compilations while a run goes on
trackers, background   who else shows the numbers; each in a thread of its own, so that none stops or slows a run
"""
