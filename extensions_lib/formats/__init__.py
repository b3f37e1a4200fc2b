"""Bytes on disk: every file the WebUI loads and we write. Needs torch and safetensors only."""
