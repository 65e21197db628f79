"""Evaluation: answers in, flat dicts of numbers out. Below what trains: stages sample and score with what is here.

Commands:
    compare_policies    `srlhfv evaluate`: several policies on the same prompts
    measure_scorer      `srlhfv evaluate --pairs`: reward and cost models on labelled pairs
    run_suites          `srlhfv benchmark`: policies on the published test sets of suites/
    calibrate           `srlhfv calibrate`: P(unsafe | cost) and normalisers of a scorer
    certify             `srlhfv certify`: a bound on a policy's true constraint, on fresh prompts
    dual                `srlhfv dual`: the multiplier of a budget, from a policy's scored answers
Models:
    answering           the one sampler of answers
    by_row              answers of a server: each drawn as its own request says
    scoring             the one scorer of texts
    policy_answers      a policy's answers, and their scores and log-probabilities token by token
    text_scores         reward and cost of texts as they come
Numbers, NumPy alone:
    answers             the record of a policy's answers, which every judge reads
    oracle              the embedded task's closed-form verdicts; forced (answers that go on from a given beginning)
    compare             policies, judged, against a baseline: quadrants (four-quadrant table and win rates), length_controlled
    score_metrics       a policy under learned reward and cost
    pair_accuracy       learned models on pairs; controls (the same rows with other pictures)
    rates, rules        shares of judged rows with intervals, and what the words of an answer say
    certificate         the constraint's upper bound beside its budget; bounds (upper confidence bounds of a mean)
    calibrators         fits of P(unsafe | cost), and how well probabilities agree with labels
    statistics          means, bootstrap, calibration error, sigmoid
Files:
    records             what the report reads
    same_prompts        the same few prompts, answered again and again while a run goes on
    label_files         answers that wait for labels, and the labels that come back
    sampled_with        whether answers in a workdir are those of the settings of now
    seen                prompts that a checkpoint's training has read
    journal             JSON lines that grow while work is done
Packages:
    judging/            judges behind one interface
    suites/             published test sets
"""
