"""Learning from what is written already: conversations (supervised fine-tuning) and texts (pretraining)."""
