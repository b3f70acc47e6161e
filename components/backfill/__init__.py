"""Backfill: old nights once more, their plan, the replay of candidates, and old ones on today's golden set."""
