"""spotinference: an operator and a gateway that serve LLMs on spot GPUs with stock vLLM."""

__version__ = "0.1.0"
