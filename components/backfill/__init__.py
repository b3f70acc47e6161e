"""Old nights once more: their plan, the chain of replayed candidates, and the scores of old ones on today's images."""
