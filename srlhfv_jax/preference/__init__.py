"""Policies from pairs, without a rollout: DPO and what grew out of it, by one loss on numbers of pairs.

run          the stage: rows -> numbers of models -> terms -> training
terms        labels and numbers -> what the loss reads of each pair
reference    log-probabilities of answers by other models, once and by content
tokens       a scorer's values of tokens -> the tokens that count
unpaired     answers that are not compared with each other: KTO
numbers      where they are kept
stage        its record: what commands, cards, report and plan know of it
"""
