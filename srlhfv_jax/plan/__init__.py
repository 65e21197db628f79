"""Memory and work of a run on a TPU slice, before anything is paid for: `srlhfv plan`.

run             one setting planned, or the cheapest searched for, printed and written
memory          the stage of some settings, planned
stage           record of a stage for plan: how it is compiled, and the arithmetic of its search
ppo_lag, supervised
                the records, and the functions of each, compiled from shapes
programs        one function compiled, and what the compiler says of it
shapes          the arguments of these functions
topology        slices that are not here
count, hlo      work of a compiled program, and the reader of its text
table           the plan as numbers, lines and advice
search          the cheapest settings that fit
"""
