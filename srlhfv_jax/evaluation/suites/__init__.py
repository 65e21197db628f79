"""Local copies of published safety benchmarks: each read into the same `Case`s, answered, judged and counted. Nothing is downloaded.

Readers, from a folder to a `Read` (the usable cases, and how many rows were dropped for which named reason):
    beavertails, figstep, mm_safetybench, mmsafe_po, mmsafeaware, mssbench, siuo, vlguard, xstest
    published    all of them by name
    case         one question, and what the readers share
Answers and judgements:
    answers      files of answers: recorded ones, and the cache of a checkpoint's
    answering    a policy's answers to cases
    judging      opinions of answers, and pairs of them
    numbers      the flat numbers of a policy on a benchmark, and a table
    worth_of_rules  the sentences under a table that refusal phrases judged
    write_cases  the cases in a file, for models that run elsewhere
"""
