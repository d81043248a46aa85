"""What an organism is made of, and how one is built: triggers, behaviours, recipes, records."""
