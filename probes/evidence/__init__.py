"""What a score is worth: nulls, shuffles, baselines, sweeps, the judgement."""
