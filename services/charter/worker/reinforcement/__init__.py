"""What PPO and its kin compute: rollouts, advantages, losses, updates."""
