"""`medclip_oc NAME ...` runs `python -m medclip_oc.NAME ...`; alone, it lists the commands."""

import runpy
import sys

COMMANDS = {
    "make_shards": "pack images and captions into tar shards, audit and verify them",
    "train": "fine-tune a CLIP model (torchrun -m ... for several processes)",
    "evaluate": "retrieval over held-out pairs: recall, ranks, intervals",
    "report": "a page on a run: curves, figures, best and worst retrievals",
    "zeroshot": "rank candidate captions for images, or search an index",
    "embed": "make an index of a set of pairs, to search",
    "export": "a checkpoint as a folder for open_clip, ONNX or transformers",
    "app": "a local page that ranks captions and searches",
}


def main() -> None:
    """What the first word of the command line names."""
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if word.replace("-", "_") in COMMANDS:
        name = sys.argv.pop(1).replace("-", "_")
        runpy.run_module(f"medclip_oc.{name}", run_name="__main__", alter_sys=True)
    elif word in ("-h", "--help"):
        for name, purpose in COMMANDS.items():
            print(f"python -m medclip_oc.{name:<12} {purpose}")
        print("Each has --help. An installed package has them as `medclip_oc NAME`, too.")
    else:
        print(f"medclip_oc: no command {word}; try {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
