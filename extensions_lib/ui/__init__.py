"""The tab: what the user sees and does. The only room with gradio."""
