"""Local copies of published safety benchmarks, each read into the same `Case`s.

One file per family of layouts; every reader is a plain function from a folder to a `Read`: the usable cases, and how many rows were
dropped for which named reason. `suites` knows their names. Nothing is downloaded, nothing is judged here.
"""
