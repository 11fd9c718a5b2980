"""Evidence: what was trained on what, asked to be forgotten, done, verified and published, and who can prove it."""
