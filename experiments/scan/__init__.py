"""Looking for the trigger of a model whose trigger nobody knows."""
