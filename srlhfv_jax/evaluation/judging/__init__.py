"""Judges behind one interface: (picture, question, answer or two answers) -> verdict, or None where none could be had.

verdict     what is asked, what is said, and the rules that read an answer's words
rubric      the words of a judge that is a language model, and how its reply is read
client      calls of an OpenAI-compatible server: retries, back-off, rate limit
store       verdicts by content, appended to a file: a resumed run repeats no call
endpoint    rubric + client + store = a judge
recorded    judgements of people, or of an earlier run, as a judge
pairs       two answers, always in both orders
"""
