r"""Trains a windowed causal generator on a trained tokenizer.

    python -m eqjax.cli.train_generator --config=configs/photos_generator.py --workdir=runs/generator \
        --config.tokenizer_weights=runs/tokenizer

Fields are set by name: --config.batch_size=32 --config.optimizer.learning_rate=1e-4. The same command
continues a run that was cut off.
"""

from eqjax.cli import runner
from eqjax.training import generator

if __name__ == "__main__":
    runner.train(generator.train_and_evaluate)
