"""Beaver-Guard-V: judges a question before it is answered and an answer before it is shown."""
