"""MLflow: runs, registered versions, aliases, and packages as pyfunc models."""
