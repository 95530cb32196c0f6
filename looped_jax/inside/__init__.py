"""What happens inside the loops of a model: states, attention, what each loop would say."""
