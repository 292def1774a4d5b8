"""What PPO and its kin compute: batches, log-probs, losses, updates."""
