"""Memory and work of a stage on a TPU slice, before anything is paid for: `srlhfv plan`."""
