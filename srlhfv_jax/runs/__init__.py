"""What every run shares: `run` (start, finish, config.json, result.json), `checkpoints`, `inputs` (rows), `labelled`, `unread`,
`unfinished`, and `curves`, what a report draws of a stage."""
