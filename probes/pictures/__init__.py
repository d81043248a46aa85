"""Pictures of all of it."""
