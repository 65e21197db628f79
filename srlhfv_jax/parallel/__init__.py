"""Devices and processes.

mesh, rules             axes (data, fsdp, tensor); parameter paths -> shardings
hosts                   several processes: their rows, global arrays, barriers
microbatches            rows in parts
offload, order          trees that wait on the host; evaluation order on CPU
host_cpu                threads and compiler options of a host's CPU
"""
