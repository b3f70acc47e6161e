"""From a trained model to the file that is served."""
