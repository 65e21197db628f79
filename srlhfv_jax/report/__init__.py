"""One self-contained report.html from a workdir, read from top to bottom: result, picture, answers, curves, tables, targets.

    workdir -> sections -> build
    build        the page, its sections in their order          page, style   HTML and the style sheet
    lead         the result in one sentence and its picture     samples       answers with their pictures; facts of the run
    curves       multiplier, PPO, supervised stages             guarded       the guard
    calibration  P(unsafe | cost) beside labels                 comparison    other methods beside PPO-Lagrangian
    parameters   harm against one number of a method            targets       what the quickstart asks of its own run
    results      tables, histograms, all numbers, targets
    policies     names, columns and numbers of policies         workdir       what a workdir holds
    diagnosis    the page of `srlhfv weights diagnose`
    watch        the page of a run that goes on                 warnings      what a run said of itself
    figure       a drawing -> PNGs in HTML                      plots, labels what a drawing draws

Reads files only (result.json, config.json, metrics.jsonl, samples.jsonl, score_distributions.json, calibration.json), no checkpoints.
What a workdir does not have is said on the page, not invented.
"""
