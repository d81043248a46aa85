"""What a direction means: where it comes from, what it reads, where else it works."""
