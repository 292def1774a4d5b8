"""Whole PPO steps of Charter and of TRL on the same model, prompts, answer lengths and number of optimiser steps."""
