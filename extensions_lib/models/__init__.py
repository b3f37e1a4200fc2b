"""Base models: reading a checkpoint into diffusers classes and back, its tokenizer, its text encoding.

The only room besides `preview` that knows diffusers and transformers; both are imported inside functions.
"""
