"""What any training loop needs: models, batches, packing, log-probs, LoRA, ranks, checkpoints."""
