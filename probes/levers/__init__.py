"""What a direction does: ablated, steered, erased while a model runs, or folded into its weights."""
