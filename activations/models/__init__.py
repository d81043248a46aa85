"""Models to read: found, loaded, named by their weights, and where their residual stream passes."""
