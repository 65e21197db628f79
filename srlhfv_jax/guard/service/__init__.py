"""The guard as an HTTP service. The model comes in as batched callables, so only `run` and `models` know of guards and policies.

run         `srlhfv serve`: guard and policy loaded, then the server
models      a guard and a policy as what the application calls
limits      every bound of the service
access      who may ask
requests    bytes of a body -> a request, or a refusal with its status
batching    requests of many clients in one call of the model
app         the ASGI application
server      uvicorn around it
"""
