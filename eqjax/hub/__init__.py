"""The Hugging Face Hub: weights files are fetched from it, and models pushed to it with a model card.

Only functions of huggingface_hub that have long been stable are used. It is imported where it is called: that takes
half a second, which nobody pays who does not use the Hub.
"""
