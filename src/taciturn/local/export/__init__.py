"""Fitted models in the forms that others serve: a merged folder, a GGUF file, Ollama, the hub.

Thin over `transformers`, `gguf` and `huggingface_hub`. An export is post-processing of a released
model: it costs nothing, and carries the model's guarantee and the digest of its certificate.
"""
