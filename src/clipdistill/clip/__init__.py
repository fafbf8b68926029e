"""The teacher: open_clip models, prompts, views, and the embedder that turns views into vectors."""
