r"""Trains a column tokenizer.

    python -m eqjax.cli.train_tokenizer --config=configs/photos_tokenizer.py --workdir=runs/tokenizer

Fields are set by name: --config.batch_size=32 --config.optimizer.learning_rate=1e-4. The same command
continues a run that was cut off.
"""

from eqjax.cli import runner
from eqjax.training import tokenizer

if __name__ == "__main__":
    runner.train(tokenizer.train_and_evaluate)
