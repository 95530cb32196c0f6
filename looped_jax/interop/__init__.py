"""Other projects' programs on our models, and theirs on ours."""
