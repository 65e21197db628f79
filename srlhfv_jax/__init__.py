"""Safe RLHF-V in JAX: vision-language models that become more helpful while their harm stays under a budget.

Rooms from the ground up; a file imports from lower lines, from its own room, and on its own line from names further left:

    compilation_cache dims errors quiet signals    compiled programs, letters of dimensions, errors of users, noise, SIGTERM and Ctrl-C
    batches files config parsing           arrays that travel, files that are whole or not there, settings
    losses data                            mathematics; rows to batches
    parallel                               meshes, shardings, several hosts
    models hf                              backbones and heads; Hugging Face checkpoints in and out
    checkpoint rollout training            saves, sampling, the one loop
    runs                                   start, rows, checkpoints, export and finish of a run
    evaluation                             answers of policies, judges, published test sets
    supervised ppo_lag guard               the trained things
    report plan quickstart                 the page, the memory, the whole pipeline
    cli                                    commands
"""

__version__ = "0.1.0"
