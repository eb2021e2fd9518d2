"""Model cards: what a model is, how to load it, and what has been measured, from its files alone."""

from collections.abc import Sequence
import contextlib
import dataclasses
import json
import math
import os
from typing import Any

import jax

from eqjax import pretrained
from eqjax.evaluation.results import Result, table
from eqjax.tables import markdown_table

_PAPER = "arXiv:2503.18948"
_TAGS = ["jax", "flax", "image-generation", "equivariance", "arxiv:2503.18948"]
_TASK = "unconditional-image-generation"
# Classes that a card lists; a thousand names are in config.json.
_MAX_CLASSES = 40
# What training runs write into the notes of their weights, before their configuration; and the length of other notes.
_CONFIG, _MAX_ORIGIN = " config: ", 300


@dataclasses.dataclass(frozen=True)
class Card:
    """Everything that a model card says.

    Attributes:
      weights: the weights.
      repo: the repository, owner/name.
      results: measured results, rows of `eqjax evaluate`; none: the card says that nothing was measured.
      has_samples: whether samples.png stands beside the card.
      license: the license of the weights, as the Hub abbreviates it; None: the card says that none is stated.
      base_model: the model on the Hub that the weights were made from, owner/name.
    """

    weights: pretrained.Weights
    repo: str
    results: Sequence[Result] = ()
    has_samples: bool = False
    license: str | None = None
    base_model: str | None = None

    def text(self) -> str:
        """Returns the card: YAML between lines of dashes, and Markdown."""
        sections = [
            self._head(),
            *(["![Samples](samples.png)"] if self.has_samples else []),
            f"## Use\n\n{self._usage()}",
            f"## Model\n\n{self._model()}",
            f"## Results\n\n{self._results()}",
            *([f"## Training\n\n{self._training()}"] if self._training_config() is not None else []),
            f"## Limits\n\n{self._limits()}",
        ]
        return f"---\n{self.metadata()}\n---\n\n" + "\n\n".join(sections) + "\n"

    def metadata(self) -> str:
        """Returns the entries that the Hub reads, as YAML."""
        from huggingface_hub import ModelCardData

        measured = self._eval_results()
        data = ModelCardData(
            library_name="eqjax",
            license=self.license,
            base_model=self.base_model,
            pipeline_tag=_TASK if "generator" in self.weights.modules else None,
            tags=_TAGS + ([] if self.weights.class_names is None else ["class-conditional"]),
            model_name=self.repo.split("/")[1] if measured else None,
            eval_results=measured or None,
        )
        return data.to_yaml().strip()

    def _eval_results(self) -> list[Any]:
        """Returns the metrics as the Hub's index of results has them; only what was measured, with its protocol."""
        from huggingface_hub import EvalResult

        return [
            EvalResult(
                task_type=_TASK,
                dataset_type=str(row["protocol"].get("reference") or row["protocol"].get("source") or "unknown"),
                dataset_name=str(row["protocol"].get("reference") or row["protocol"].get("source") or "unknown"),
                metric_type=name,
                metric_value=value,
                metric_args=dict(row["protocol"]),
            )
            for row in self.results
            for name, value in row["metrics"].items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]

    def _head(self) -> str:
        name = self.repo.split("/")[1]
        parts = " and ".join(f"a {part}" for part in self.weights.modules)
        text = f"# {name}\n\n{parts[:1].upper()}{parts[1:]} of equivariant image modeling ({_PAPER}), for eqjax."
        origin = self.weights.notes.split(_CONFIG)[0].rstrip(".; ")
        return text + (f"\n\nOrigin: {origin}." if 0 < len(origin) < _MAX_ORIGIN and "\n" not in origin else "")

    def _usage(self) -> str:
        address = f"hf://{self.repo}"
        lines = ["import eqjax", "", f'model = eqjax.load_pretrained("{address}")']
        if {"tokenizer", "generator"} <= set(self.weights.modules):
            label = repr((self.weights.class_names or (0,))[0]).replace("'", '"')
            lines += [f"images = model.sample({label}, num_columns=32)  # uint8 [1, height, width, 3]"]
            lines += [f"strips = eqjax.panorama(model, {label})  # Without end."]
        elif "tokenizer" in self.weights.modules:
            lines += ["latents = model.encode(images)  # One vector per column of pixels.", "model.decode(latents)"]
        else:
            lines[-1] = f'model = eqjax.load_pretrained("TOKENIZER", "{address}")  # The tokenizer is in another file.'
        return "\n".join(["```python", *lines, "```"])

    def _model(self) -> str:
        rows = []
        for name, module in self.weights.modules.items():
            count = sum(leaf.size for leaf in jax.tree.leaves(self.weights.params[name]))
            rows.append([f"{name}: parameters", f"{count / 1e6:,.1f} M"])
            fields = pretrained.module_to_dict(module)
            rows += [[f"{name}: {key}", f"`{json.dumps(value)}`"] for key, value in fields.items()]
        rows.append(["latent scale", f"{self.weights.latent_scale}"])
        text = markdown_table(["", ""], rows)
        names = self.weights.class_names
        if names is not None:
            more = f", … ({len(names)} in all, in config.json)" if len(names) > _MAX_CLASSES else ""
            text += f"\n\nClasses: {', '.join(names[:_MAX_CLASSES])}{more}."
        elif "generator" in self.weights.modules:
            text += "\n\nClasses are given by number; no names were stored."
        return text

    def _results(self) -> str:
        if not self.results:
            return "Nothing has been measured for this card."
        return f"Measured by `eqjax evaluate`; results.json has every option.\n\n{table(self.results)}".rstrip()

    def _training_config(self) -> Any:
        """Returns the configuration that a training run writes into the notes of its weights, or None."""
        _, found, text = self.weights.notes.partition(_CONFIG)
        with contextlib.suppress(ValueError):
            return json.JSONDecoder().raw_decode(text)[0] if found else None
        return None

    def _training(self) -> str:
        command = "train-generator" if "generator" in self.weights.modules else "train-tokenizer"
        text = json.dumps(_without_folders(self._training_config()), indent=2, ensure_ascii=False)
        return f"By `eqjax {command}` with this configuration:\n\n```json\n{text}\n```"

    def _limits(self) -> str:
        license = "" if self.license is not None else "\n- No license of these weights has been stated."
        return (
            "- The model repeats what its training data show, biases included; it is for research.\n"
            "- Samples far longer than the training images are extrapolation: look at them before you rely on them."
            + license
        )


def public_notes(notes: str) -> str:
    """Returns the notes of weights with absolute paths in their configurations cut to their last part.

    Example:
      >>> public_notes('generator after 7 steps; config: {"data": {"root": "/home/me/photos"}}')
      'generator after 7 steps; config: {"data": {"root": "…/photos"}}'
    """
    head, *rest = notes.split(_CONFIG)
    parts = [head]
    for text in rest:
        try:
            config, end = json.JSONDecoder().raw_decode(text)
        except ValueError:  # It is no configuration that a training run wrote.
            parts.append(text)
        else:
            parts.append(json.dumps(_without_folders(config), ensure_ascii=False) + text[end:])
    return _CONFIG.join(parts)


def _without_folders(config: Any) -> Any:
    """Returns JSON values with absolute paths cut to their last part: folders of one machine tell others nothing."""
    if isinstance(config, dict):
        return {name: _without_folders(value) for name, value in config.items()}
    if isinstance(config, list):
        return [_without_folders(value) for value in config]
    return f"…/{os.path.basename(config.rstrip('/'))}" if isinstance(config, str) and os.path.isabs(config) else config
