"""From a folder of pictures as people have them to latents, captions and batches."""
