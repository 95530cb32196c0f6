"""What a model knows: loss and exact match on held-out rows."""
