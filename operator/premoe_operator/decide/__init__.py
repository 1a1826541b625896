"""What to do about one PrunedModel and what to say of it. Pure: values in, values out."""
