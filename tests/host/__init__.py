"""Tests against a real, running AUTOMATIC1111 WebUI; skipped unless WEBUI_ROOT or WEBUI_URL is set."""
