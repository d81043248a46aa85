"""What a model does: how often it defects, what it can still do, what it inclines to."""
