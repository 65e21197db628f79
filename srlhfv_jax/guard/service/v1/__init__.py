"""The endpoints that clients of OpenAI's API know, around the same batched callables.

fields      what a body may hold: the API's fields and their ranges; what would change an answer and is not done is refused
messages    messages of a chat -> turns, a question and its pictures
parse       bytes of a body -> what the model is asked
replies     what the model said -> objects of the API, whole or as a stream
errors      a refusal -> the API's error object and its status
routes      the endpoints
"""
