"""A model served with its probe on: replies made together, an OpenAI-compatible endpoint, a page to watch it."""
