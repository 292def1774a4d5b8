"""Answers of the policy with their rewards, sampled ahead of the update."""
