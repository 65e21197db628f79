"""Parts that every run shares.

run            start, finish; config.json and result.json are written here alone
stage          what a command has to know of a stage, as a record
checkpoints    loading what a run starts from
inputs         rows of a run, read and checked
few_shapes     rows of requests in batches of few shapes
labelled       how many rows each head learns from
unfinished     the newest checkpoint of a run without an export
rewrite        `srlhfv export`
same_model     checkpoints of one model, to be put together number by number
merge          `srlhfv weights merge`
patch          `srlhfv weights patch`
units          `srlhfv weights units`
diagnose       `srlhfv weights diagnose`
answered       rows with answers for these two
revise         `srlhfv revise`
curves         what a report draws of a stage
environment    `srlhfv env`
"""
