"""STLM anomaly detection: models, training, metrics, export and prediction, without any orchestrator."""
