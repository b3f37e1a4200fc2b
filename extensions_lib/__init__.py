"""Train Studio: trains Stable Diffusion inside the WebUI, and from the command line."""

__version__ = "0.1.0"
