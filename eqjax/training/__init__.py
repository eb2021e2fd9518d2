"""Training of both stages: `tokenizer.train_and_evaluate` and `generator.train_and_evaluate`."""
