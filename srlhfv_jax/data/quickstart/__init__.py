"""The embedded task "Look before you answer": real pictures, templated questions and a true judge in closed form.

concepts, questions, answers    things, questions about them, the closed grammar of answers
pictures                        drawings of things, turned, scaled and recoloured
oracle                          the true helpfulness and cost of an answer
rows                            every set of rows that the pipeline trains and measures with
processor                       the base checkpoint: its words and its image processor
"""
