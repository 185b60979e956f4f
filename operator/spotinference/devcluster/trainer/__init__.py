"""The demo model: a page of text and the script that teaches it to a tiny Llama.

`train.py` runs with the engine's Python (torch, transformers) and imports nothing of ours;
`devcluster/demo_model.py` calls it and keeps the result in the cache.
"""
