"""What the training scripts share: data, masking, collation, schedules, callbacks."""
