"""The forward pass: from prompts to residuals, replies and losses."""
