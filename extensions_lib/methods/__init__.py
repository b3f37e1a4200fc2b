"""Training methods: what is attached, what is trained, what file is written."""
