"""The programs Train Studio runs in, behind one port: the WebUI and the standalone page."""
