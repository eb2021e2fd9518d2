"""Training of the tokenizer and the generator: `tokenizer.train_and_evaluate`, `generator.train_and_evaluate`."""
