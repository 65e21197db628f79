"""The guard as an HTTP service: limits, requests, micro-batches, the ASGI application and the server that runs it.

The model comes in as batched callables (`requests.Moderate`, `requests.Generate`), so nothing here knows JAX.
"""
