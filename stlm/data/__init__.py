"""Images, masks, folders and pseudo-anomalies."""
