"""The command line: `main` finds the command, which reads its flags and calls one function of a room.

    flags        reading flags and config files
    define       defining a command's own flags, one a line
    stage        what a command asks of its config before it runs

Stages: sft, scores, reward, cost, guard, ppo_lag. Others: quickstart, data, plan, generate, moderate, serve, evaluate, benchmark,
report, export.
"""
