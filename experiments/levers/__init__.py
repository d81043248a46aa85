"""Which of an organism's directions do anything: levers tried, chosen on some prompts, judged on others."""
