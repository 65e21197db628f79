"""Judges behind one interface: (picture, question, answer or two answers) -> verdict, or None where none could be had.

verdict     a request to a judge, and its verdict
choose      the judge that the settings choose
rubric      the words of a judge that is a language model, and the reading of its reply
client      calls of an OpenAI-compatible server: retries, back-off, rate limit
store       verdicts by content, appended to a file: a resumed run repeats no call
endpoint    rubric + client + store = a judge
recorded    judgements of people, or of an earlier run, as a judge
pairwise    two answers, always in both orders
"""
