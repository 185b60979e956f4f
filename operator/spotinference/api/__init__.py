"""The resources as Python values: models, names, conditions, wire formats between our processes.

Imported by every room, imports none of them; no I/O, no clock, no framework but pydantic.
"""
