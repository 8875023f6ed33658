"""What goes with a model to others: what it is, what it was trained on, how well it did."""

from collections.abc import Sequence
from typing import Any

from ..config.vocabulary import DIRECTIONS
from ..reporting.run_files import Evaluated

_USES = {
    "open_clip": """import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")""",
    "onnx": """import onnxruntime

images = onnxruntime.InferenceSession("FOLDER/image_tower.onnx")
[features] = images.run(None, {"images": pixels})   # uint8 (B, 3, H, W), see preprocess.json
texts = onnxruntime.InferenceSession("FOLDER/text_tower.onnx")
[features] = texts.run(None, {"tokens": tokens})    # int64 (B, L)""",
    "hf": """from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("FOLDER")
processor = CLIPProcessor.from_pretrained("FOLDER")""",
}


def text(content: dict[str, Any], form: str, evaluated: Sequence[Evaluated]) -> str:
    """The card as Markdown.

    Args:
        content: the checkpoint.
        form: "open_clip", "onnx" or "hf".
        evaluated: of the run's evaluations, those of this checkpoint.
    """
    model = content["model"]
    library = {"open_clip": "open_clip", "onnx": "onnx", "hf": "transformers"}[form]
    lines = [
        "---",
        f"library_name: {library}",
        "tags: [clip, radiology]",
        "pipeline_tag: zero-shot-image-classification",
        "---",
        f"# {model['name']}, fine-tuned on radiology images and captions",
        "",
        "**Research use only.** This is not a medical device. It must not be used for diagnosis, "
        "or for any decision about a patient. It was trained on figures of published articles, "
        "whose choice of cases is nobody's everyday practice; a cosine is no probability of a "
        "finding.",
        "",
        "## What it is",
        "",
        *_facts(content),
        "",
        "## How well it retrieves",
        "",
        *_figures(evaluated),
        "",
        "## How to use it",
        "",
        f"```python\n{_USES[form]}\n```",
    ]
    moved = model["definition"]["text_cfg"].get("hf_model_name", "")
    if form == "open_clip" and str(moved).startswith("package:"):
        lines += [
            "",
            "open_clip finds the text tower's configuration by `text_cfg.hf_model_name` in "
            "open_clip_config.json, a path: set it to FOLDER/text_model when the folder is moved.",
        ]
    return "\n".join(lines) + "\n"


def _facts(content: dict[str, Any]) -> list[str]:
    model, config = content["model"], content.get("config") or {}
    preprocess, definition = model["preprocess"], model["definition"]
    data, trained = config.get("data") or {}, config.get("model") or {}
    start = trained.get("pretrained") or " and ".join(
        str(trained[key]) for key in ("pretrained_image", "pretrained_text") if trained.get(key)
    )
    versions = ", ".join(f"{k} {v}" for k, v in (content.get("versions") or {}).items())
    activation = "QuickGELU" if model["quick_gelu"] else "GELU"
    found = {
        "architecture": f"{model['name']}, {activation}, {definition['embed_dim']} features",
        "images": f"{preprocess['size']} px, {preprocess['resize_mode']}, "
        f"{preprocess['interpolation']}; mean {preprocess['mean']}, std {preprocess['std']}",
        "texts": f"{model['context_length']} tokens, tokenizer {model['tokenizer']}",
        "weights before": start or ("random" if trained else None),
        "training data": data.get("train"),
        "validation data": data.get("valid"),
        "step": content.get("step"),
        "pairs seen": content.get("position"),
        "made with": versions or None,
    }
    return [f"- {name}: {value}" for name, value in found.items() if value is not None]


def _figures(evaluated: Sequence[Evaluated]) -> list[str]:
    if not evaluated:
        return ["Not measured: no evaluation of this checkpoint lies in its run folder."]
    lines = [
        "Each image's own caption among all captions of the pool, and the other way round. Figures "
        "over pools of other sizes can't be compared.",
        "",
        "| evaluation | pool | direction | R@1 | R@5 | R@10 | median rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in evaluated:
        for way, words in DIRECTIONS.items():
            row = one.record[way]
            recalls = " | ".join(f"{100 * row[f'R@{k}']:.1f} %" for k in (1, 5, 10))
            lines.append(
                f"| {one.name} | {one.record['pool']:,} | {words} | {recalls} | "
                f"{row['median_rank']:g} |"
            )
    return lines
