"""The `defection` command, a file a command."""
