"""Pages that show what batch norm does: to one model, and to a training."""
