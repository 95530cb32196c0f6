"""From tasks and text to batches of token rows."""
