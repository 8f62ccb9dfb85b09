"""Many runs: seeds, chains of distillation, robustness."""
