"""The guard as an HTTP service. The model comes in as batched callables, so only `run`, `warm_up` and `models` know of guards and
policies.

run         `srlhfv serve`: guard, policy and scorer loaded, then the server
warm_up     programs of usual lengths, compiled before the first request
models      a guard, a policy and a scorer as what the application calls
limits      every bound of the service
access      who may ask
requests    bytes of a body -> a request, or a refusal with its status
batching    requests of many clients in one call of the model
exchange    one request, from its head to its answer
metrics     numbers for /health and Prometheus
app         the ASGI application, with the page of page.html
v1/         the endpoints of OpenAI's API
server      uvicorn around it
"""
