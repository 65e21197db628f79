"""Memory and work of a run on a TPU slice, before anything is paid for: `srlhfv plan`.

run             one setting planned, or the cheapest searched for, printed and written
memory          every function of a run, compiled from shapes
shapes          the arguments of these functions
topology        slices that are not here
count, hlo      work of a compiled program, and the reader of its text
table           the plan as numbers, lines and advice
search          the cheapest settings that fit
"""
